"""Content hashes: a run's identity follows what it was computed with, not where that lay.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path

from saebench_recovery import __version__
from saebench_recovery.base.hashing import hash_file, hash_files, hash_text
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.targets.presets import Preset

# The packages, beside this one, whose code decides the numbers of a run.
PACKAGES = ("torch", "transformers")
# In a clone these stand beside the package, once installed inside it.
PLUGIN_ROOMS = ("attacks", "defenses", "tasks")
# What only shows numbers; and weights that the hash of their target covers.
LEFT_OUT = (("cli",), ("results", "report"), ("targets", "organism", "assets"))


def target_fingerprint(preset: Preset) -> str:
    """Hash of a target: the files of its model and SAEs, or their hub ids and revision."""
    fields = preset.model_dump(include={"revision", "dtype", "bos", "knowledge"})
    saes = {site: _location(where) for site, where in preset.saes.items()}
    return hash_text(canonical_json({**fields, "model": _location(preset.model), "saes": saes}))


def _location(where: str) -> str:
    file = Path(where).expanduser()
    if file.is_file():
        return hash_files([file], file.parent)
    for folder in (package_folders()[""] / "targets" / where, Path(where).expanduser()):
        if folder.is_dir():
            # A model card beside the weights is about them, not part of them.
            files = (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".md")
            return hash_files(files, folder)
    return where


def harness_fingerprint() -> str:
    """Hash of the harness's code and embedded data, so that an edit makes old results stale."""
    return hash_text(canonical_json({name: hash_file(file) for name, file in _harness_files()}))


class Fingerprints:
    """These hashes and versions for several runs of one process: what they are of is read once."""

    def __init__(self) -> None:
        self._of_target: dict[str, str] = {}

    @cached_property
    def harness(self) -> str:
        return harness_fingerprint()

    @cached_property
    def packages(self) -> dict[str, str]:
        return package_versions()

    def target(self, preset: Preset) -> str:
        name = canonical_json(preset.model_dump(mode="json"))
        if name not in self._of_target:
            self._of_target[name] = target_fingerprint(preset)
        return self._of_target[name]


def package_folders() -> dict[str, Path]:
    """Where the package lies (under ""), and its three rooms of plugins."""
    rooms = {name: resources.files(f"saebench_recovery.{name}") for name in PLUGIN_ROOMS}
    return {"": Path(__file__).parents[1]} | {n: Path(str(room)) for n, room in rooms.items()}


def _harness_files() -> Iterator[tuple[str, Path]]:
    """Each file with its name inside the package, wherever that lies."""
    for room, folder in package_folders().items():
        for file in folder.rglob("*"):
            inside = (*Path(room).parts, *file.relative_to(folder).parts)
            hidden = any(part.startswith((".", "__pycache__")) for part in inside)
            shown_only = any(inside[: len(left_out)] == left_out for left_out in LEFT_OUT)
            if file.is_file() and not hidden and not shown_only:
                yield "/".join(inside), file


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers; ours needs no installation."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"saebench-recovery": __version__, **installed}
