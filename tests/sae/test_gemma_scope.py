"""Gemma Scope's own layouts from a folder and from the hub, against SAELens' own loaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.runs.fingerprint import target_fingerprint
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.targets.hub import load_sae
from saebench_recovery.targets.presets import preset, presets
from tests.hub_server import Hub
from tests.saes import D, M, close, residual

FIRST, SECOND = "google/gemma-scope-2b-pt-res", "google/gemma-scope-2-270m-pt"
FIRST_ID = "layer_3/width_16k/average_l0_59"
SECOND_ID = "layer_12_width_16k_l0_medium"
LAYER_3, LAYER_12 = Site.parse("blocks.3.hook_resid_post"), Site.parse("blocks.12.hook_resid_post")


AT_5 = "blocks.5.hook_resid_post"


def weights() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {
        "w_enc": torch.randn(D, M, generator=drawn) * D**-0.5,
        "w_dec": torch.randn(M, D, generator=drawn) * M**-0.5,
        "b_enc": torch.randn(M, generator=drawn) * 0.1,
        "b_dec": torch.randn(D, generator=drawn),
        "threshold": torch.rand(M, generator=drawn),
    }


def expected() -> torch.Tensor:
    """Activations by the published formula."""
    w, x = weights(), residual()
    p = x @ w["w_enc"] + w["b_enc"]
    return p * (p > w["threshold"])


def write_first(folder: Path) -> Path:
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {name: w.numpy() for name, w in weights().items()}
    np.savez(folder / "params.npz", **arrays)
    return folder


def write_second(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-pt",
        "hf_hook_point_in": "model.layers.12.output",
        "hf_hook_point_out": "model.layers.12.output",
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file(weights(), folder / "params.safetensors")
    return folder


def assert_read(dictionary: Dictionary) -> None:
    close(dictionary.encode(residual()), expected())
    w, x = weights(), residual()
    close(dictionary.decode(expected(), x), expected() @ w["w_dec"] + w["b_dec"])
    assert (dictionary.architecture, dictionary.centred) == ("jumprelu", False)


# --- from a folder ----------------------------------------------------------------------------


def test_folders_and_files(tmp_path: Path) -> None:
    first = write_first(tmp_path / "anywhere")
    second = write_second(tmp_path / "elsewhere")
    for place in (first, first / "params.npz"):
        assert_read(load_sae(str(place), LAYER_3, "cpu"))
    for place in (second, second / "params.safetensors"):
        assert_read(load_sae(str(place), LAYER_12, "cpu"))


@pytest.mark.parametrize(
    ("path", "hook"),
    [
        ("gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59", "blocks.3.hook_resid_post"),
        ("gemma-scope-9b-pt-mlp/layer_20/width_16k/average_l0_9", "blocks.20.hook_mlp_out"),
        (
            "gemma-scope-2b-pt-res-canonical/layer_25/width_16k/canonical",
            "blocks.25.hook_resid_pos",
        ),
        ("gemma-scope-2-270m-pt-res/layer_12_width_16k_l0_medium", "blocks.12.hook_resid_post"),
        ("gemma-scope-2-1b-it/resid_post_all/layer_7_width_16k_l0_big", "blocks.7.hook_resid_post"),
        ("gemma-scope-2-1b-it-mlp-all/layer_7_width_16k_l0_big", "blocks.7.hook_mlp_out"),
    ],
)
def test_hook_point_by_the_names_of_folders(path: str, hook: str) -> None:
    (site,) = preset(f"google/gemma+{path}").saes
    assert site.startswith(hook)


def test_hook_point_by_the_configuration(tmp_path: Path) -> None:
    residual_site = write_second(tmp_path / "a")
    mlp = "model.layers.4.post_feedforward_layernorm.output"
    mlp_site = write_second(tmp_path / "b", hf_hook_point_in=mlp, hf_hook_point_out=mlp)
    saes = preset(f"google/gemma-3-270m+{residual_site}+{mlp_site}").saes
    assert list(saes) == ["blocks.12.hook_resid_post", "blocks.4.hook_mlp_out"]
    unnamed = write_first(tmp_path / "c")
    with pytest.raises(UserError, match="does not say which residual it reads"):
        preset(f"google/gemma-2-2b+{unnamed}")


def test_identity_follows_the_file(tmp_path: Path) -> None:
    place = write_second(tmp_path / "a") / "params.safetensors"
    name = f"google/gemma-3-270m+{place}@blocks.12.hook_resid_post"
    before = target_fingerprint(preset(name))
    save_file({**weights(), "b_enc": torch.zeros(M)}, place)
    assert target_fingerprint(preset(name)) != before


@pytest.mark.parametrize(
    ("folder", "changes", "line"),
    [
        ("a", {"hf_hook_point_out": "model.layers.13.output"}, "'jumprelu_transcoder' \\(it reads"),
        (
            "transcoder_all/layer_12_width_16k",
            {"hf_hook_point_out": None},
            "transcoder' \\(it reads",
        ),
        ("a", {"architecture": "relu"}, "unsupported SAE architecture 'relu'"),
        ("a", {"hf_hook_point_in": "model.layers.3.output"}, "trained at .*, not at blocks.12"),
        ("a", {"hf_hook_point_in": None}, "does not say what the SAE reads"),
    ],
)
def test_refusals(tmp_path: Path, folder: str, changes: dict[str, Any], line: str) -> None:
    if "hf_hook_point_in" in changes:
        changes = {**changes, "hf_hook_point_out": changes["hf_hook_point_in"]}
    with pytest.raises(UserError, match=line):
        load_sae(str(write_second(tmp_path / folder, **changes)), LAYER_12, "cpu")


def test_damaged_files(tmp_path: Path) -> None:
    for folder, file in ((write_first, "params.npz"), (write_second, "params.safetensors")):
        path = folder(tmp_path / file) / file
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(UserError, match="cannot read ") as refusal:
            load_sae(str(path), LAYER_12, "cpu")
        assert "\n" not in str(refusal.value)


# --- from the hub -----------------------------------------------------------------------------


@pytest.fixture
def released(hub: Hub, tmp_path: Path) -> Hub:
    write_first(hub.add(FIRST, tmp_path / "1", "a" * 40) / FIRST_ID)
    write_second(hub.add(SECOND, tmp_path / "2", "b" * 40) / "resid_post" / SECOND_ID)
    return hub


@pytest.mark.usefixtures("clients")
def test_releases_are_read_as_saelens_reads_them(
    released: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    first = presets()["gemma-2-2b-it"].saes[str(LAYER_3)]
    second = f"gemma-scope-2-270m-pt-res/{SECOND_ID}"
    assert first.endswith(FIRST_ID)
    assert_read(load_sae(first, LAYER_3, "cpu"))
    assert_read(load_sae(second, LAYER_12, "cpu"))

    # SAELens has the size of the first in its code.
    sizes = loaders.get_gemma_2_config_from_hf
    shrunk = {"d_in": D, "d_sae": M}
    monkeypatch.setattr(
        loaders, "get_gemma_2_config_from_hf", lambda *a, **k: {**sizes(*a, **k), **shrunk}
    )
    for place in (first, second):
        theirs = SAE.from_pretrained(*place.split("/", 1))
        close(theirs.encode(residual()), expected())
    assert not released.unknown

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    released.asked.clear()
    assert_read(load_sae(first, LAYER_3, "cpu"))
    assert_read(load_sae(second, LAYER_12, "cpu"))  # which SAELens cannot do
    assert not released.asked
    with pytest.raises(UserError, match=r"trained at 'blocks.3.hook_resid_post', not at blocks.12"):
        load_sae(first, LAYER_12, "cpu")


@pytest.mark.usefixtures("clients")
def test_what_cannot_be_read_is_not_downloaded(released: Hub) -> None:
    transcoder = "transcoder/layer_9_width_16k_l0_small_affine"
    write_second(released.repositories[SECOND].folder / transcoder)
    with pytest.raises(UserError, match="'jumprelu_transcoder'"):
        load_sae(f"gemma-scope-2-270m-pt-transcoders/{transcoder}", LAYER_12, "cpu")
    assert not [line for line in released.asked if "safetensors" in line]
    with pytest.raises(UserError, match=f"{SECOND} does not have a file that belongs to it"):
        load_sae("gemma-scope-2-270m-pt-res/layer_5_width_16k_l0_medium", Site.parse(AT_5), "cpu")
