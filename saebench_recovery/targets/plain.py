"""The reference engine of a target: its own model object, and its SAEs read by SAELens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import read_json_object
from saebench_recovery.base.sites import Site
from saebench_recovery.model.plain import PlainModel, eager
from saebench_recovery.sae import gemma_scope
from saebench_recovery.targets.hub import load_model, published_sae, sae_files
from saebench_recovery.targets.presets import Preset


def load_plain(
    chosen: Preset, sites: Iterable[Site] | None = None, device: str = "cpu"
) -> PlainModel:
    """A fresh model in the preset's precision, and the SAEs at some sites (default: all of them).

    Raises:
        UserError: the files are nowhere or broken, or SAELens reads something else than the
            residual stream from them.
    """
    tokenizer, model = load_model(chosen, device)
    places = {Site.parse(site): place for site, place in chosen.saes.items()}
    wanted = places if sites is None else sites
    saes = {site: _sae(places[site], device) for site in wanted}
    return PlainModel(eager(model), tokenizer, saes)


def _sae(place: str, device: str) -> Any:
    """An SAE as SAELens has it, in float32."""
    files = sae_files(place)
    try:
        sae = published_sae(place) if files is None else _from_disk(files)
    except UserError:
        raise
    except Exception as error:  # json, safetensors and SAELens have no common base class
        raise UserError(f"SAELens cannot read the SAE {place!r}: {error}") from error
    if sae.cfg.reshape_activations != "none":
        raise UserError(f"the SAE {place!r} reads reshaped attention heads; use a residual one")
    return sae.to(device).eval().requires_grad_(False)


def _from_disk(files: Path) -> Any:
    from sae_lens import SAE  # takes five seconds

    if gemma_scope.weights_file(files) is not None:
        return SAE.load_from_disk(files, dtype="float32", converter=_gemma_scope)
    sae = SAE.load_from_disk(files, dtype="float32")
    # SAELens drops the metadata of a configuration that names no version of it.
    config = read_json_object(files / "cfg.json")
    metadata = config.get("metadata") or config
    sae.cfg.metadata.model_from_pretrained_kwargs = metadata.get("model_from_pretrained_kwargs")
    return sae


def _gemma_scope(
    path: Path, device: str, cfg_overrides: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What SAELens asks of a converter: configuration and weights in its names."""
    config, state = gemma_scope.read(path)
    d_in, d_sae = state["W_enc"].shape
    return {**config, "d_in": d_in, "d_sae": d_sae, "device": device, **cfg_overrides}, state
