"""Models and published SAEs from a folder, the local cache or the hub, in this order.

The libraries' own loaders do the work; what is in the cache is not loaded again, and with
`HF_HUB_OFFLINE=1` no connection is tried. Whatever goes wrong ends in one line that says what to
do.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, errors, hf_hub_download
from huggingface_hub.file_download import repo_folder_name

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import at_home, is_folder, reason
from saebench_recovery.base.sites import Site
from saebench_recovery.sae import gemma_scope
from saebench_recovery.sae.files import architecture_of, from_state, load_dictionary
from saebench_recovery.sae.host import Host
from saebench_recovery.sae.latents import Dictionary
from saebench_recovery.targets import packaged as gguf
from saebench_recovery.targets.presets import Preset
from saebench_recovery.targets.weights import read_model

T = TypeVar("T")
SHARDED = "sharded"  # the blocks of a model spread over all accelerators
SMALLER = "try --dtype bfloat16, or --device cpu"
# SAELens' names of its loaders that read weights with `torch.load`.
PICKLED = (
    "connor_rob_hook_z",
    "deepseek_r1",
    "dictionary_learning_1",
    "goodfire",
    "qwen_scope",
)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def load_model(preset: Preset, device: str = "cpu") -> tuple[Any, Any]:
    """The tokenizer and the model, on a device or `SHARDED`.

    Raises:
        UserError: it is nowhere, gated, broken, too large, or brings code (see `read_model`).
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading what is here already; downloads keep theirs
    dtype = getattr(torch, preset.dtype)
    spread = {"device_map": "auto"} if device == SHARDED else {}

    what = f"model {preset.model!r}"

    def load() -> tuple[Any, Any]:
        if gguf.is_packaged(preset.model):
            folder: Path | None = gguf.converted(preset.model, preset.revision or "")
        else:
            folder = local_folder(preset.model)
        where = str(folder or preset.model)
        revision = {} if folder else {"revision": preset.revision or "main"}
        tokenizer, model = read_model(where, what, dtype=dtype, **revision, **spread)
        return tokenizer, model if spread else model.to(device)

    tokenizer, model = _explained(load, what, preset.model)
    if spread and any(weight.device.type in ("cpu", "meta") for weight in model.parameters()):
        raise UserError(f"{what} is larger than the memory of all accelerators; {SMALLER}")
    return tokenizer, model


def load_sae(
    place: str, site: Site, device: str, *, host: Host | None = None, force: bool = False
) -> Dictionary:
    """The SAE in a folder (or file of Gemma Scope), or of a release of SAELens' (`RELEASE/ID`).

    Raises:
        UserError: it is nowhere, gated, broken, or `sae_files` refuses it.
    """
    files = sae_files(place)
    if files is not None:
        return load_dictionary(files, site, device, host=host, force=force)
    sae = published_sae(place)
    return from_state(sae.cfg.to_dict(), sae.state_dict(), site, device, host=host, force=force)


def sae_files(place: str) -> Path | None:
    """Where an SAE's files are, once they are on this machine; None if only SAELens reads it.

    Raises:
        UserError: it is nowhere, gated or broken.
    """
    local = _local_sae(place)
    if local is not None:
        return local
    published = _published(place)
    path = published.saes_map[place.partition("/")[2]]
    weights = gemma_scope.LOADERS.get(published.conversion_func or "")
    if weights is None:
        return None
    return _explained(
        lambda: _gemma_scope(published.repo_id, path, weights),
        f"SAE {place!r}",
        published.repo_id,
    )


def published_sae(place: str) -> Any:
    """A published SAE as SAELens loads it, in float32.

    Raises:
        UserError: it is nowhere, gated or broken.
    """
    from sae_lens import SAE  # takes five seconds

    release, _, sae_id = place.partition("/")
    published = _published(place)
    if published.conversion_func in PICKLED:
        raise UserError(
            f"SAE {place!r} is published as a pickle, which can run code: load it with SAELens, "
            "save it with save_model() and give that folder"
        )

    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how its model was loaded: `centred` sees to it
            return SAE.from_pretrained(release, sae_id, device="cpu")

    return _explained(load, f"SAE {place!r}", published.repo_id)


def _local_sae(place: str) -> Path | None:
    path = local_folder(place) or at_home(place)
    return path if os.path.exists(path) else None


def _published(place: str) -> Any:
    """What SAELens knows of the release that a published SAE is of.

    Raises:
        UserError: it knows no such release, or no such SAE in it.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, sae_id = place.partition("/")
    known = get_pretrained_saes_directory()
    if release not in known:
        raise UserError(
            f"SAE {place!r} is no folder, and SAELens knows no release {release!r}"
            f"{_proposal(release, known)}"
        )
    if sae_id not in known[release].saes_map:
        close = _proposal(sae_id, known[release].saes_map)
        raise UserError(f"SAE {place!r}: release {release!r} has no SAE {sae_id!r}{close}")
    return known[release]


def repository_of(place: str) -> str | None:
    """The hub's repository of a published SAE; None for one on this machine."""
    return None if _local_sae(place) else str(_published(place).repo_id)


def commit_of(repository: str, revision: str | None = None) -> str:
    """The commit that a revision (default: `main`) stood for when something was last read from it.

    The revision itself if that is not known. SAELens cannot be told a commit to read, so what it
    has read is looked up afterwards, in the cache.
    """
    wanted = revision or constants.DEFAULT_REVISION
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    found = Path(constants.HF_HUB_CACHE) / folder / "refs" / wanted
    return found.read_text("utf-8").strip() if found.is_file() else wanted


def _gemma_scope(repository: str, path: str, weights: str) -> Path:
    """The folder in the cache that holds the SAE; what cannot be read is not downloaded."""
    said = gemma_scope.described(f"{repository}/{path}")
    with suppress(errors.EntryNotFoundError):  # the first generation has none
        config = hf_hub_download(repository, f"{path}/{gemma_scope.CONFIG}")
        said = gemma_scope.described(Path(config).parent)
    architecture_of(said)
    return Path(hf_hub_download(repository, f"{path}/{weights}")).parent


def _proposal(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def name_on_hub(model: str) -> str | None:
    """The name, if the model of a preset is one of the hub's."""
    return None if gguf.is_packaged(model) or local_folder(model) else model


def local_folder(place: str) -> Path | None:
    """The folder inside this package or on this machine, if there is one."""
    inside = Path(str(resources.files("saebench_recovery.targets"))) / place
    return next((folder for folder in (inside, at_home(place)) if is_folder(folder)), None)


def _explained(load: Callable[[], T], what: str, repository: str) -> T:
    """What `load` gives, its failures in words.

    Raises:
        UserError: `load` failed.
    """
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # what the libraries raise has no common base class
        raise UserError(f"{what} {_reason(error, repository)}") from error


def _reason(error: BaseException, repository: str) -> str:
    """Why loading failed: the libraries wrap the hub's own errors, sometimes twice."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    responses = (getattr(one, "response", None) for one in chain)
    answers = [f"answered {r.status_code} ({r.reason_phrase})" for r in responses if r is not None]
    if met(torch.OutOfMemoryError):
        return f"is larger than the device's memory; with several, try --device sharded; {SMALLER}"
    if met(errors.GatedRepoError):
        return (
            f"is gated: accept its terms at {constants.ENDPOINT}/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if met(errors.RevisionNotFoundError):
        return f"is on the hub, but {repository} does not have the revision that was asked for"
    if met(errors.RepositoryNotFoundError):
        return (
            f"is not found: there is no such folder, and {repository} is not on the hub, or is "
            "private (then log in with `hf auth login`)"
        )
    if met(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        alone = "HF_HUB_OFFLINE forbids a connection"
        if not constants.HF_HUB_OFFLINE:
            alone = f"{constants.ENDPOINT} {answers[0] if answers else 'cannot be reached'}"
        return (
            f"is no folder, {repository} is not in the local cache, and {alone}; the same command "
            "fills the cache where there is one"
        )
    if met(errors.HFValidationError):
        return "is not found: there is no such folder, and it is not the name of a repository"
    if met(errors.RemoteEntryNotFoundError):
        return f"is on the hub, but {repository} does not have a file that belongs to it"
    if any(isinstance(one, OSError) and one.errno in NO_SPACE for one in chain):
        return (
            f"does not fit on the disk of {constants.HF_HUB_CACHE}; free some space there, or set "
            "HF_HOME to a folder on another disk"
        )
    if answers:
        return (
            f"could not be downloaded: {constants.ENDPOINT} {answers[0]} for a file of {repository}"
        )
    # The base class of the hub client's connection errors, whichever HTTP library it uses.
    if any(kind.__name__ == "TransportError" for one in chain for kind in type(one).__mro__):
        return (
            "could not be downloaded: the connection broke off, more than once; repeat the "
            "command, complete files are kept"
        )
    if any("trust_remote_code" in str(one) for one in chain):
        return (
            "brings code of its own, which is never run: transformers itself must have the "
            "architecture and the tokenizer"
        )
    return f"cannot be loaded: {type(error).__name__}: {reason(error)}"
