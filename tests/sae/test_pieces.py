"""A dictionary is read in pieces: the same figures, without ever holding it whole."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saebench_recovery import registry
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Attack, Defense
from saebench_recovery.sae import latents
from saebench_recovery.sae.files import from_state, load_dictionary
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.schema import Row
from saebench_recovery.selection.probes import fit_probes
from saebench_recovery.selection.refusal_direction import aligned
from saebench_recovery.spec import RunSpec
from saebench_recovery.training.quality import reconstruction, spliced_in
from tests.journal import score
from tests.saes import SITE, D, M, close, random_sae, residual
from tests.tiny import SITES, WIDTH, TinyTask, tiny_dictionary, tiny_target

PER_LATENT = 2 * 4 * WIDTH  # bytes of an encoder column and a decoder row
PIECE, WIDE = 64, 960
Patch = pytest.MonkeyPatch


class Memory:
    """Bytes of encoder columns and decoder rows that are alive, now and at most."""

    def __init__(self, patch: Patch) -> None:
        self.now = self.most = 0
        for name in ("columns", "rows"):
            patch.setattr(Dictionary, name, self._counted(getattr(Dictionary, name)))

    def _counted(self, read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counting(*args: Any) -> Tensor:
            made = read(*args).clone()  # main memory lends what a device would have to copy
            self.now += made.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(made, self._freed, made.nbytes)
            return made

        return counting

    def _freed(self, size: int) -> None:
        self.now -= size

    def again(self) -> None:
        """Forget what has been let go of."""
        gc.collect()  # a dictionary and what it keeps know each other
        self.most = self.now


@pytest.fixture
def memory(monkeypatch: Patch) -> Memory:
    return Memory(monkeypatch)


def small_pieces(patch: Patch, size: int = PIECE, width: int = WIDTH) -> None:
    patch.setattr(latents, "PIECE_BYTES", size * 2 * 4 * width)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_pieces_are_the_whole(architecture: str, normalisation: str, monkeypatch: Patch) -> None:
    small_pieces(monkeypatch, 36, D)
    sae = random_sae(architecture, normalisation)
    ours = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE)
    x = residual()
    pieces = list(ours.pieces())
    assert [piece.features.numel() for piece in pieces] == [36, 36, M - 72]
    close(torch.cat([piece.read(x) for piece in pieces], -1), sae.encode(x))
    z = sae.encode(x)
    close(ours.reconstruct(x), sae.decode(z))
    assert ours.kept_bytes == 0


def test_competing_latents_are_one_piece(monkeypatch: Patch) -> None:
    small_pieces(monkeypatch, 36, D)
    sae = random_sae("topk", k=8)
    ours = from_state(sae.cfg.to_dict(), sae.state_dict(), SITE)
    (piece,) = ours.pieces()
    close(piece.read(residual()), sae.encode(residual()))
    assert ours.kept_bytes == 4 * D * M  # the encoder; decoder rows only as they are read


@pytest.mark.parametrize("defense", ["clamp", "trajectory", "residual-monitor"])
def test_a_run_holds_one_piece_at_most(defense: str, memory: Memory, monkeypatch: Patch) -> None:
    whole = row(defense)
    assert memory.most >= WIDE * PER_LATENT
    few = sum(len(features) for features in whole.features.values())
    assert whole.compute.dictionary_bytes is not None
    assert whole.compute.dictionary_bytes >= (WIDE + few) * PER_LATENT
    small_pieces(monkeypatch)
    memory.again()
    in_pieces = row(defense)
    assert memory.most <= (PIECE + few) * PER_LATENT
    assert in_pieces.compute.dictionary_bytes == few * PER_LATENT
    assert in_pieces.examples.valid > 0
    assert figures(in_pieces) == figures(whole)


def row(defense: str) -> Row:
    made = registry.create("defense", defense, {"latents": 8})
    attack = registry.create("attack", "orthogonal", {"steps": 4})
    assert isinstance(made, Defense)
    assert isinstance(attack, Attack)
    target = tiny_target("llama")
    wide = {
        site: tiny_dictionary(site, seed=i, latents=WIDE)
        for i, site in enumerate(target.dictionaries)
    }
    spec = RunSpec(limit=12)
    return score(replace(target, dictionaries=wide), TinyTask(), made, attack, spec).row


def figures(row: Row) -> dict[str, Any]:
    return row.model_dump(exclude={"compute"})


def test_selection_and_quality_read_one_piece_at_a_time(memory: Memory, monkeypatch: Patch) -> None:
    target, site = tiny_target("gpt2"), Site.parse(SITES[0])
    splits = [TinyTask().examples(target, split) for split in ("selection", "evaluation")]
    prompts = [[example.prompt for example in split] for split in splits]

    def measured() -> list[Tensor]:
        dictionary = tiny_dictionary(site, latents=WIDE)
        here = replace(target, dictionaries={site: dictionary})
        resid = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))
        read = reconstruction(dictionary, [resid])
        lost = spliced_in(here, dictionary, prompts[0][:8])
        assert read.explained_variance is not None
        return [
            TinyTask().attribution(here, site),
            fit_probes(here, site, prompts, prompts).effect(0),
            aligned(dictionary, resid[0], 5).features.float(),
            torch.tensor([read.explained_variance, read.l0, read.dead, lost.spliced]),
        ]

    whole = measured()
    small_pieces(monkeypatch)
    memory.again()
    for found, wanted in zip(measured(), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert memory.most <= PIECE * PER_LATENT


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    random_sae("jumprelu").save_model(tmp_path)
    ours = load_dictionary(tmp_path, SITE)
    file = str(tmp_path / "sae_weights.safetensors")
    maps = Path("/proc/self/maps").read_text().splitlines()
    (held,) = {line.split()[0] for line in maps if line.endswith(file)} or {""}
    first, last = (int(end, 16) for end in held.split("-"))
    for matrix in (ours.encoder_DM, ours.decoder_MD):
        assert first <= matrix.data_ptr() < last
