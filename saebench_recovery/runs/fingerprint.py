"""Content hashes: a run's identity follows what it was computed with, not where that lay.

Nothing here imports torch.
"""

from __future__ import annotations

from importlib import metadata, resources
from pathlib import Path

from saebench_recovery.base.hashing import hash_files, hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.targets.presets import Preset

# The packages, and the rooms of this one, whose code decides the numbers of a run.
PACKAGES = ("saebench-recovery", "torch", "transformers")
ROOMS = ("base", "schema", "sae", "model", "targets", "selection", "perturbations", "scoring", "runs", "protocols")


def target_fingerprint(preset: Preset) -> str:
    """Hash of a target: the files of its model and SAEs, or their hub ids and revision."""
    said = preset.model_dump(include={"revision", "dtype", "bos", "knowledge"})
    saes = {site: _location(where) for site, where in preset.saes.items()}
    return hash_text(canonical_json({**said, "model": _location(preset.model), "saes": saes}))


def _location(where: str) -> str:
    file = Path(where).expanduser()
    if file.is_file():
        return hash_files([file], file.parent)
    for folder in (_package("targets") / where, Path(where).expanduser()):
        if folder.is_dir():
            # A model card beside the weights is about them, not part of them.
            files = (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".md")
            return hash_files(files, folder)
    return where


def harness_fingerprint() -> str:
    """Hash of the harness's code and embedded data, so that an edit makes old results stale."""
    hashes = {room: hash_files(_package(room).rglob("*.py"), _package(room)) for room in ROOMS}
    top = Path(__file__).parent
    hashes["top"] = hash_files(top.glob("*.py"), top)
    data = _package("tasks") / "data"
    hashes["data"] = hash_files(data.iterdir(), data)
    return hash_text(canonical_json(hashes))


def _package(room: str) -> Path:
    return Path(str(resources.files(f"saebench_recovery.{room}")))


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide the numbers."""
    return {name: metadata.version(name) for name in PACKAGES}
