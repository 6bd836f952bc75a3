"""Reading an SAE from its folder, or from its SAELens configuration and weights in memory.

`sae_lens` is not imported: that takes five seconds and its loader neither folds nor refuses
`expected_average_only_in` weights. Anything that cannot be read exactly is refused in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from pydantic import BaseModel
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.precision import exact
from saebench_recovery.base.reading import is_file, read_json_object, read_tensors, reason
from saebench_recovery.base.settings import validate
from saebench_recovery.base.sites import Site
from saebench_recovery.sae import gemma_scope
from saebench_recovery.sae.activations import Threshold, TopK
from saebench_recovery.sae.host import Host, check_metadata
from saebench_recovery.sae.latents import (
    Architecture,
    Dictionary,
    Normalisation,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LATENTS = 4096  # of a dictionary that are read at once
# Weights of each architecture besides W_enc, W_dec and b_dec.
_BIASES: dict[Architecture, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
}
_HINTS = {
    "batchtopk": "a training checkpoint: export it with save_inference_model(), as jumprelu",
    "matryoshka_batchtopk": "a training checkpoint: export it with save_inference_model()",
    "temporal": "its latents look at other positions",
    "matching_pursuit": "its encoder is iterative, so no direction belongs to a latent",
    **dict.fromkeys(
        ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
        "it reads one hook point and writes another",
    ),
}


def load_dictionary(
    place: Path | str,
    site: Site,
    device: torch.device | str = "cpu",
    *,
    host: Host | None = None,
    force: bool = False,
) -> Dictionary:
    """Read a folder of SAELens, or a folder or weights file of Gemma Scope, in any dtype.

    The weights of safetensors stay in their file until they are read: see `Dictionary`.

    Raises:
        UserError: the files are missing or broken, or `from_state` refuses the SAE.
    """
    place = Path(place)
    if gemma_scope.weights_file(place) is not None:
        try:
            cfg, state = gemma_scope.read(place)
        except UserError:
            raise
        except Exception as error:  # numpy and zipfile have no common base class
            raise UserError(f"cannot read the SAE at {place}: {reason(error)}") from error
        return from_state(cfg, state, site, device, host=host, force=force)
    for name in (CONFIG, WEIGHTS):
        if not is_file(place / name):
            raise UserError(
                f"no SAE at {place}: {name} is missing; a folder written by SAE.save_model holds "
                f"{CONFIG} and {WEIGHTS}, one of Gemma Scope {gemma_scope.NPZ} or "
                f"{gemma_scope.SAFETENSORS}"
            )
    cfg, (state, _) = read_json_object(place / CONFIG), read_tensors(place / WEIGHTS)
    return from_state(cfg, state, site, device, host=host, force=force)


def from_state(
    cfg: Mapping[str, Any],
    state: Mapping[str, Tensor],
    site: Site,
    device: torch.device | str = "cpu",
    *,
    host: Host | None = None,
    force: bool = False,
) -> Dictionary:
    """A dictionary from `sae.cfg.to_dict()` and `sae.state_dict()`, read on a device.

    Raises:
        UserError: an architecture or normalisation that cannot be read exactly, weights that
            are missing, not finite or of the wrong shape, or, unless `force`, an SAE of another
            hook point or model.
    """
    metadata = metadata_of(cfg)
    architecture = architecture_of(cfg)
    normalisation = _normalisation(cfg)
    forced = False
    try:
        check_metadata(metadata, site, host)
    except UserError:
        if not force:
            raise
        forced = True
    w = _weights(architecture, cfg, state)

    model_kwargs: Mapping[str, Any] = metadata.get("model_from_pretrained_kwargs") or {}
    bias_M = w["b_gate" if architecture == "gated" else "b_enc"]
    if cfg.get("apply_b_dec_to_input", True):
        columns = torch.split(w["W_enc"], LATENTS, dim=1)
        shift = [exact(w["b_dec"]) @ exact(columns_DS) for columns_DS in columns]
        bias_M = bias_M - torch.cat(shift).float().to(bias_M.device)
    norm_M = None
    if cfg.get("rescale_acts_by_decoder_norm"):  # topk and abstopk only
        rows = torch.split(w["W_dec"], LATENTS)
        norm_M = torch.cat([rows_SD.float().norm(dim=1) for rows_SD in rows])
        bias_M = bias_M * norm_M
    return Dictionary(
        site=site,
        architecture=architecture,
        normalisation=normalisation,
        centred=normalisation == "layer_norm" or bool(model_kwargs.get("center_writing_weights")),
        activation=_activation(architecture, cfg, w, device),
        encoder_DM=w["W_enc"],
        bias_M=bias_M.to(device),
        decoder_MD=w["W_dec"],
        decoder_bias_D=w["b_dec"].to(device),
        norm_M=norm_M if norm_M is None else norm_M.to(device),
        device=device,
        forced=forced,
    )


class _Metadata(BaseModel):
    """The types that are counted on, of what SAELens writes about an SAE."""

    hook_name: str | None = None
    hook_point: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] | None = None


class _Config(_Metadata):
    architecture: str = "standard"
    activation_fn: str | None = None
    activation_fn_str: str | None = None
    activation_fn_kwargs: dict[str, Any] | None = None
    normalize_activations: str | None = None
    reshape_activations: str | None = None
    metadata: _Metadata | None = None


def metadata_of(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a SAELens configuration says about the SAE: before version 6 it was flat.

    Raises:
        UserError: a part of the configuration is of the wrong type.
    """
    validate(_Config, cfg, "cfg.json of the SAE")
    return cfg.get("metadata") or cfg


def _activation(
    architecture: Architecture,
    cfg: Mapping[str, Any],
    w: Mapping[str, Tensor],
    device: torch.device | str,
) -> Threshold | TopK:
    if architecture in ("topk", "abstopk"):
        kwargs = cfg.get("activation_fn_kwargs") or {}
        k = cfg.get("k", kwargs.get("k"))
        if not isinstance(k, int) or not 1 <= k <= w["W_dec"].shape[0]:
            raise UserError(f"SAE architecture {architecture!r} needs 1 <= k <= width, got k={k}")
        return TopK(k, signed=architecture == "abstopk")
    zero_M = torch.zeros(w["W_dec"].shape[0], device=device)
    if architecture == "gated":
        gain_M = w["r_mag"].exp()
        offset_M = w["b_mag"] - w["b_gate"] * gain_M
        return Threshold(zero_M, gain_M.to(device), offset_M.to(device))
    threshold_M = w["threshold"].to(device) if "threshold" in w else zero_M
    return Threshold(threshold_M, torch.ones_like(zero_M), zero_M)


def architecture_of(cfg: Mapping[str, Any]) -> Architecture:
    """The architecture that a SAELens configuration names.

    Raises:
        UserError: it cannot be read exactly.
    """
    name = cfg.get("architecture", "standard")
    function = cfg.get("activation_fn") or cfg.get("activation_fn_str") or "relu"
    if name == "standard" and function == "topk":  # SAELens before 6
        return "topk"
    if name not in get_args(Architecture) or function not in ("relu", "topk"):
        what = name if name not in get_args(Architecture) else f"{name} with {function}"
        allowed = ", ".join(get_args(Architecture))
        hint = _HINTS.get(what, "use an SAE that reconstructs its own input")
        raise UserError(f"unsupported SAE architecture {what!r} ({hint}); allowed: {allowed}")
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(
            "this SAE reads reshaped attention heads (hook_z); use one of the residual stream"
        )
    return cast(Architecture, name)


def _normalisation(cfg: Mapping[str, Any]) -> Normalisation:
    name = cfg.get("normalize_activations") or "none"
    if name in get_args(Normalisation):
        return cast(Normalisation, name)
    raise UserError(
        f"the SAE's input normalisation {name!r} is not folded into its weights, so its "
        "activations would have the wrong scale; fold it in sae_lens "
        "(fold_activation_norm_scaling_factor or fold_activation_whitening) and save it again; "
        f"read as they are: {', '.join(get_args(Normalisation))}"
    )


def _weights(
    architecture: Architecture,
    cfg: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weights, complete, finite and of one shape: the matrices as they are, vectors float32."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise UserError(f"SAE weight {name} is {kind}; it should hold real numbers")
    w = {
        name: tensor.detach() if tensor.ndim == 2 else tensor.detach().float()
        for name, tensor in state.items()
    }
    if "log_threshold" in w:  # older jumprelu training checkpoints
        w["threshold"] = w.pop("log_threshold").exp()
    if "scaling_factor" in w and bool((w["scaling_factor"] == 1).all()):
        del w["scaling_factor"]  # written, unused, by older versions
    needed = {"W_enc", "W_dec", "b_dec", *_BIASES[architecture]}
    if w.keys() != needed:
        raise UserError(
            f"a {architecture} SAE has the weights {', '.join(sorted(needed))}; "
            f"this one has {', '.join(sorted(w))}"
        )
    if w["W_enc"].ndim != 2:
        raise UserError(f"W_enc should be [d_in, d_sae], not {list(w['W_enc'].shape)}")
    d, m = w["W_enc"].shape
    shapes = {"W_enc": (d, m), "W_dec": (m, d), "b_dec": (d,)}
    for name, tensor in w.items():
        expected = shapes.get(name, (m,))
        if tuple(tensor.shape) != expected:
            raise UserError(
                f"SAE weight {name} is {list(tensor.shape)}, but W_enc {[d, m]} asks for "
                f"{list(expected)}; W_enc is stored as [d_in, d_sae]"
            )
        if not all(end.isfinite() for end in tensor.aminmax()):  # makes no copy
            raise UserError(f"SAE weight {name} holds NaN or infinity; the file is damaged")
    if (cfg.get("d_in", d), cfg.get("d_sae", m)) != (d, m):
        raise UserError(
            f"cfg.json says d_in {cfg.get('d_in')} and d_sae {cfg.get('d_sae')}, "
            f"but the weights are {d} x {m}"
        )
    return w
