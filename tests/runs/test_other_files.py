"""A run is of its model and of its SAE: verified with others, it says so by name."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from saebench_recovery import run
from saebench_recovery.runs.verify import verify as module
from saebench_recovery.runs.verify.report import Verification
from saebench_recovery.runs.verify.verify import verify
from saebench_recovery.targets import presets

ASSETS = Path(str(resources.files("saebench_recovery.targets"))) / "organism" / "assets"


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genuine")
    return out / run(tasks=["ioi"], limit=2, attack_config={"steps": 3}, out=out).identity


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded model and SAEs that may be spoilt, as the target `organism`."""
    folder = Path(shutil.copytree(ASSETS, tmp_path / "copy"))
    original = presets.preset("organism")
    saes = {
        site: str(folder / Path(where).relative_to("organism/assets"))
        for site, where in original.saes.items()
    }
    changed = original.model_copy(update={"model": str(folder), "saes": saes})
    monkeypatch.setattr(presets, "presets", lambda: {"organism": changed})
    return folder


def scaled(file: Path, weights: str) -> None:
    """Change one of a file's tensors."""
    tensors = load_file(file)
    tensors[weights] = 1.01 * tensors[weights]
    save_file(tensors, file, metadata={"format": "pt"})


def of_model(folder: Path) -> None:
    file = folder / "model.safetensors"
    scaled(file, next(name for name in load_file(file) if "mlp" in name))


def of_sae(folder: Path) -> None:
    for file in folder.rglob("sae_weights.safetensors"):
        scaled(file, "W_dec")


def fields(found: Verification) -> set[str]:
    return {mismatch.field for mismatch in found.mismatches}


@pytest.mark.parametrize("spoil", [None, of_model, of_sae], ids=["neither", "model", "SAE"])
def test_another_file_is_named(
    genuine: Path, copied: Path, spoil: object, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if callable(spoil):
        spoil(copied)
    if not whole:
        monkeypatch.setattr(module, "recomputed", lambda *_: (0, 0))
    found = verify(genuine)
    if spoil is None:
        assert found.holds
        return
    assert found.exit_code == 1
    assert {"spec.environment.target", "provenance.target_hash"} <= fields(found)
    if whole:  # the numbers say so too
        assert {"objective_clean", "objective_defended"} & fields(found)
