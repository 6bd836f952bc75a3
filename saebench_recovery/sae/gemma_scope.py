"""The layouts of Gemma Scope and Gemma Scope 2, told as SAELens would tell them.

Gemma Scope is a `params.npz` and nothing else: what it reads stands only in the names of its
folders. Gemma Scope 2 is `params.safetensors` with a `config.json`. SAELens has loaders for both,
but none for a folder, and its loader of the second needs a connection even to read from the cache.

Weights apart, nothing here imports torch.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_recovery.base.reading import check_file, read_json_object, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

NPZ, SAFETENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
LARGEST_RATIO = 50  # of unpacked to packed bytes
LOADERS = {"gemma_2": NPZ, "gemma_3": SAFETENSORS}  # SAELens' names of its loaders -> weights

# What the names of folders and repositories say that an SAE reads.
_KINDS = {
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "attn.hook_z",
}
_MODEL = re.compile(r"gemma-scope-(2-)?(\w+-(?:pt|it))")
_RELEASE = re.compile(
    r"gemma-scope-(?:2-)?\w+-(?:pt|it)-(res|mlp|att|transcoders)(?:-all|-canonical)?/"
    r"(?:.*/)?layer_(\d+)[/_]"
)
_FOLDER = re.compile(r"/(resid_post|mlp_out|attn_out|transcoder|clt)(?:_all)?/layer_(\d+)[^/]*/$")
_MLP_OUT = re.compile(r"model\.layers\.(\d+)\.post_feedforward_layernorm\.output")


def weights_file(place: Path) -> Path | None:
    """The weights at a place, a folder or the file itself, if they are Gemma Scope's."""
    files = [place] if place.is_file() else [place / NPZ, place / SAFETENSORS]
    ours = (f for f in files if f.suffix == ".npz" or f.name == SAFETENSORS)
    return next((f for f in ours if f.is_file()), None)


def described(place: Path | str) -> dict[str, Any]:
    """The SAELens configuration of an SAE, as far as its path and its `config.json` say it.

    Raises:
        ValueError: the `config.json` does not say it.
        UserError: it is damaged.
    """
    path = Path(place).absolute()
    folder = path.parent if path.suffix in (".npz", ".safetensors") else path
    return {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        **_of_path(f"{folder.as_posix()}/"),
        **_of_config(folder / CONFIG),
    }


def _of_path(path: str) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if model := _MODEL.search(path):
        generation, size = ("3", model[2]) if model[1] else ("2", model[2].removesuffix("-pt"))
        said["model_name"] = f"gemma-{generation}-{size}"
    if "/embedding/" in path:
        said["hook_name"] = "hook_embed"
    elif named := _RELEASE.search(path) or _FOLDER.search(path):
        kind, layer = named.groups()
        if kind in _KINDS:
            said["hook_name"] = f"blocks.{layer}.{_KINDS[kind]}"
        else:
            said["architecture"] = "jumprelu_transcoder"
    return said


def _of_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    config = read_json_object(file)
    if not isinstance(config.get("hf_hook_point_in"), str):
        raise ValueError(f"{file} does not say what the SAE reads (hf_hook_point_in)")
    reads, writes = config["hf_hook_point_in"], config.get("hf_hook_point_out")
    said = {"hook_name": _MLP_OUT.sub(r"blocks.\1.hook_mlp_out", reads)}
    if config.get("architecture") != "jump_relu":
        said["architecture"] = str(config.get("architecture"))
    elif writes not in (None, reads):
        said["architecture"] = "jumprelu_transcoder"
    if "model_name" in config:
        said["model_name"] = str(config["model_name"]).replace("-v3", "-3")
    return said


def read(place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and state of an SAE in SAELens' names.

    Raises:
        FileNotFoundError: there are no weights of either layout.
        ValueError: a file is damaged.
        UserError: the same.
    """
    import numpy as np
    import torch

    file = weights_file(place)
    if file is None:
        raise FileNotFoundError(2, "no weights", str(place / NPZ))
    if file.suffix == ".npz":
        _check_archive(file)
        with np.load(file, allow_pickle=False) as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays}
    else:
        state, _ = read_tensors(file)
    named = {f"W{name[1:]}" if name.startswith("w_") else name: w for name, w in state.items()}
    return described(file), named


def _check_archive(file: Path) -> None:
    """Refuse an archive that is far larger unpacked: weights hardly compress."""
    check_file(file)
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > LARGEST_RATIO * file.stat().st_size:
        raise ValueError(f"{unpacked} bytes unpacked, from {file.stat().st_size}")
