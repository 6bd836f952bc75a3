"""The real clients against a hub on this machine, then from their cache with the hub gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, file_download

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.cli import main
from saebench_recovery.results.store import read_result
from saebench_recovery.sae.host import Host
from saebench_recovery.targets.hub import load_sae
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import name_of_parts, presets
from tests.hub_fixtures import MODEL, SAES
from tests.hub_server import TOKEN, Hub
from tests.layouts import write_llama_scope
from tests.saes import close, residual

SITE = Site.parse("blocks.4.hook_resid_pre")
SAE = f"gpt2-small-res-jb/{SITE}"
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def contents() -> list[torch.Tensor]:
    """All weights of the target `gpt2-small`."""
    target = load_target("gpt2-small", "cpu")
    return [*target.model.parameters(), target.dictionary(SITE).encoder_DM]


def refused(arguments: str, patch: Patch, capsys: Capture) -> str:
    """The one line that the command ends with, and its exit code 2."""
    patch.setattr(sys, "argv", ["saebench", "run", "--task", "ioi", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_run_in_a_fresh_process(hub: Hub, tmp_path: Path) -> None:
    """As a user has it: the clients read the hub's address from their environment."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    words = "run --target gpt2-small --limit 8 -D latents=4 -A steps=2 --json --out"
    done = subprocess.run(
        [sys.executable, "-m", "saebench_recovery", *words.split(), str(tmp_path / "runs")],
        env={**environment, "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made_by = read_result(Path(done.stdout.strip())).provenance
    assert made_by.commits == {MODEL: presets()["gpt2-small"].revision, SAES: "a" * 40}
    assert not hub.unknown


@pytest.mark.usefixtures("clients")
def test_from_the_hub_then_from_the_cache(hub: Hub, monkeypatch: Patch) -> None:
    from_hub = contents()
    hub.asked.clear()
    assert_same(contents(), from_hub)
    assert hub.asked
    assert not [line for line in hub.asked if "/storage/" in line]  # nothing is loaded twice

    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(contents(), from_hub)
    assert not hub.asked


@pytest.mark.usefixtures("clients")
def test_what_was_read_at_no_stated_commit_is_noted(hub: Hub, monkeypatch: Patch) -> None:
    """Neither this model nor any SAE is asked for at a commit, and their repositories move on."""
    name = name_of_parts(MODEL, [SAE])
    at_first = {name: found.commit for name, found in hub.repositories.items()}
    target = load_target(name, "cpu")
    assert target.commits == {MODEL: at_first[MODEL]}
    target.dictionary(SITE)
    assert target.commits == at_first
    hub.repositories[SAES] = replace(hub.repositories[SAES], commit="d" * 40)
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        later = load_target(name, "cpu")
        later.dictionary(SITE)
        assert later.commits == at_first | {SAES: "d" * 40}


@pytest.mark.usefixtures("clients")
def test_from_the_cache_with_the_hub_gone(hub: Hub, monkeypatch: Patch) -> None:
    from_hub = contents()
    hub.stop()
    assert_same(contents(), from_hub)


def assert_same(these: list[torch.Tensor], those: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


@pytest.mark.usefixtures("clients")
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"gated": True}, f"{MODEL!r} is gated: accept its terms at http://127.* `hf auth login`"),
        ({"commit": "b" * 40}, f"{MODEL!r} is on the hub, but {MODEL} does not have the revision"),
    ],
)
def test_a_model_that_is_refused(
    hub: Hub, monkeypatch: Patch, capsys: Capture, tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    hub.repositories[MODEL] = replace(hub.repositories[MODEL], **change)
    said = refused(f"--target gpt2-small --out {tmp_path}", monkeypatch, capsys)
    assert re.search(line, said), said


@pytest.mark.usefixtures("clients")
def test_a_gated_model_opens_with_a_token(hub: Hub, monkeypatch: Patch) -> None:
    hub.repositories[MODEL] = replace(hub.repositories[MODEL], gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    with pytest.raises(UserError, match="is gated"):
        contents()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert contents()


@pytest.mark.usefixtures("clients")
def test_a_missing_repository_and_a_missing_file(
    hub: Hub, monkeypatch: Patch, capsys: Capture, tmp_path: Path
) -> None:
    by_parts = f"--model some/model --sae {SAE} --out {tmp_path}"
    assert "some/model is not on the hub, or is private" in refused(by_parts, monkeypatch, capsys)
    hub.add(SAES, tmp_path / "empty", "a" * 40)
    said = refused(f"--target gpt2-small --out {tmp_path}", monkeypatch, capsys)
    assert f"SAE {SAE!r} is on the hub, but {SAES} does not have" in said


@pytest.mark.usefixtures("clients")
def test_a_download_that_breaks_off_is_taken_up_again(hub: Hub) -> None:
    hub.cuts = {"model.safetensors": 1, "sae_weights.safetensors": 2, "tokenizer.json": 1}
    contents()
    assert not any(hub.cuts.values())


def full_disk(patch: Patch) -> None:
    """Downloads go to the device that has no space left, ever; the kernel's own error comes."""
    real = file_download.http_get

    def onto_it(url: str, temp_file: Any, **how: Any) -> None:
        with open("/dev/full", "wb") as full:
            real(url, full, **how)

    patch.setattr(file_download, "http_get", onto_it)


@pytest.mark.usefixtures("clients")
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "sae_weights.safetensors"])
@pytest.mark.parametrize(
    ("cause", "line"),
    [
        ("cut", "the connection broke off, more than once; repeat the command"),
        ("full", r"does not fit on the disk of /.*cache; free some space there, or set HF_HOME"),
    ],
)
def test_a_download_that_fails_leaves_the_cache_valid(
    hub: Hub, monkeypatch: Patch, capsys: Capture, tmp_path: Path, file: str, cause: str, line: str
) -> None:
    with Patch.context() as failing:
        if cause == "cut":
            hub.endless_cuts = {file: 100}
        else:
            full_disk(failing)
        said = refused(f"--target gpt2-small --out {tmp_path}", failing, capsys)
    assert re.search(line, said), said
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.endless_cuts = {}
    assert contents()


@pytest.mark.usefixtures("clients")
def test_a_release_whose_normalisation_saelens_folds(hub: Hub, tmp_path: Path) -> None:
    """Llama Scope: transposed half-precision weights, scaled to a norm that is folded in."""
    from sae_lens import SAE

    chosen = presets()["llama-3.1-8b"]
    ((hook, place),) = chosen.saes.items()
    folder = hub.add("fnlp/Llama3_1-8B-Base-LXR-8x", tmp_path / "llama", "c" * 40)
    write_llama_scope(folder / "Llama3_1-8B-Base-L15R-8x", hook)
    ours = load_sae(place, Site.parse(hook), "cpu", host=Host(chosen.model, "llama"))
    theirs = SAE.from_pretrained(*place.split("/"))
    z = theirs.encode(residual())
    assert 0 < (z != 0).float().mean() < 1
    close(ours.encode(residual()), z)
    close(ours.decode(z, residual()), theirs.decode(z))
    assert not hub.unknown
