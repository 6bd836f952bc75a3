"""Drift of the defended latents, recomputed by the reference engine for one example in float64.

Activations are those of SAELens's own `encode` on the whole residual. Pre-activations follow from
the SAE's weights and the input as SAELens prepares it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saebench_recovery.base.sites import Site
from saebench_recovery.model.examples import Example
from saebench_recovery.model.plain import Conditions, PlainModel, teacher_forced
from saebench_recovery.spec import Limits

# Root mean square activation, relative to what is typical, up to which latents are silent: their
# pre-activations are judged there.
SILENT = 1e-3  # as in perturbations.drift, by its own words


@dataclass(frozen=True)
class Reading:
    """Defended latents at each token of one pass, float64, per site [T, S].

    `z` are activations, `p` pre-activations, `decoded` [T, D] the sum of the latents' decoder rows
    in the SAE's output coordinates.
    """

    z: Mapping[Site, Tensor]
    p: Mapping[Site, Tensor]
    decoded: Mapping[Site, Tensor]

    def at(self, tokens: Sequence[int]) -> Reading:
        """The same at some tokens."""
        z, p, decoded = (
            {site: values[list(tokens)] for site, values in each.items()}
            for each in (self.z, self.p, self.decoded)
        )
        return Reading(z, p, decoded)


def read(
    model: PlainModel, resid_TD: Mapping[Site, Tensor], latents: Mapping[Site, Any]
) -> Reading:
    """Read the features that `latents` name out of the residual at each site."""
    z, p, decoded = {}, {}, {}
    for site, defended in latents.items():
        sae, features = model.saes[site], defended.features.tolist()
        z[site], p[site] = read_latents(sae, resid_TD[site], features)
        decoded[site] = z[site] @ decoder_rows(sae, features)
    return Reading(z, p, decoded)


@torch.no_grad()
def read_latents(sae: Any, resid_TD: Tensor, features: list[int]) -> tuple[Tensor, Tensor]:
    """Activations and pre-activations [T, S] of some features of a SAELens SAE, float64.

    A gated SAE's pre-activation is its gate's. Where a topk SAE rescales by the norms of decoder
    rows, that belongs to the pre-activation.
    """
    kwargs = sae.cfg.metadata.model_from_pretrained_kwargs or {}
    if kwargs.get("center_writing_weights"):  # its model's residual stream has mean zero
        resid_TD = resid_TD - resid_TD.mean(-1, keepdim=True)
    z_TS: Tensor = sae.encode(resid_TD)[:, features].double()
    # The statistics that SAELens leaves on the module here are overwritten by the next call.
    input_TD: Tensor = sae.process_sae_in(resid_TD).double()
    bias_M = sae.b_gate if sae.cfg.architecture() == "gated" else sae.b_enc
    p_TS: Tensor = input_TD @ sae.W_enc[:, features].double() + bias_M[features].double()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        p_TS = p_TS * sae.W_dec[features].double().norm(dim=1)
    return z_TS, p_TS


def decoder_rows(sae: Any, features: list[int]) -> Tensor:
    """What an activation of 1 adds to the SAE's output before normalisation is undone, [S, D]."""
    rows_SD: Tensor = sae.W_dec[features].double()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return normalize(rows_SD, dim=1)
    return rows_SD


@dataclass(frozen=True)
class PlainDrift:
    """Drift of one example: the metrics of `schema.Drift` per scope, None where undefined.

    `latents` and `decoded` are the largest judged drift of any scope, infinite where it is NaN.
    """

    scopes: Mapping[str, Mapping[str, float | None]]
    latents: float
    decoded: float

    def within(self, limits: Limits) -> bool:
        """Whether drift and decode drift are inside the limits in every scope."""
        return self.latents <= limits.drift and self.decoded <= limits.decode

    @property
    def bound(self) -> bool:
        """Whether there is a displacement where the perturbation acts or is read."""
        each = [self.scopes[name]["preactivation_relative"] for name in ("perturbed", "readout")]
        return any(value is not None for value in each)

    @property
    def tightest_limit(self) -> float | None:
        """The smallest limit on both that it is inside of; None if of none."""
        largest = max(self.latents, self.decoded)
        return None if math.isinf(largest) else largest


@torch.no_grad()
def drift_of(
    model: PlainModel,
    example: Example,
    conditions: Conditions,
    positions: Iterable[int],
    typical: Mapping[Site, float],
    *,
    held: Mapping[Site, Any] | None = None,
    inserted: tuple[Example, int] | None = None,
) -> PlainDrift:
    """Drift of the pass under `conditions` from that under their defense alone.

    `positions` are the perturbed tokens of the prompt, -1 for none. `held` are the latents that are
    read, by default all that the defense declares. `inserted` is the example with tokens put in,
    and before which token: those are left out, and the longer prompt's last token is compared
    with the prompt's last one.

    Raises:
        ValueError: the conditions have no defense.
    """
    defense = conditions.defense
    if defense is None:
        raise ValueError("drift is that of a defense's latents")
    latents = defense.latents if held is None else held
    sites = tuple(latents)

    def passed(what: Example, under: Conditions) -> Reading:
        seen = model.run(_row(what), under, sites).after
        return read(model, seen, latents)

    longer, insertion = inserted or (example, 0)
    put_in = len(longer.prompt) - len(example.prompt)
    readout = len(example.prompt) - 1
    tokens = range(len(_row(example)))
    moved = [t if t < min(insertion, readout) else t + put_in for t in tokens]
    return drift(
        passed(example, Conditions(defense)),
        passed(longer, conditions).at(moved),
        scopes(example, positions),
        typical,
    )


def _row(example: Example) -> tuple[int, ...]:
    """The row of tokens that drift is read on: with the first answer where answers are forced."""
    return (*example.prompt, *(example.candidates[0] if teacher_forced(example) else ()))


def scopes(example: Example, positions: Iterable[int]) -> dict[str, list[int]]:
    """Tokens of each scope: the perturbed ones, the last of the prompt, and all later ones."""
    tokens = range(len(_row(example)))
    perturbed = sorted(set(positions) & set(tokens))
    return {
        "perturbed": perturbed,
        "readout": [len(example.prompt) - 1],
        "later": [t for t in tokens if perturbed and t > perturbed[0] and t not in perturbed],
    }


def drift(
    reference: Reading,
    recovered: Reading,
    scopes: Mapping[str, Sequence[int]],
    typical: Mapping[Site, float],
) -> PlainDrift:
    """Drift of a recovered pass from the defended reference, per scope of tokens."""
    metrics: dict[str, dict[str, float | None]] = {}
    worst, worst_decoded = 0.0, 0.0
    for name, tokens in scopes.items():
        before, after = (r.at(tokens) for r in (reference, recovered))
        metrics[name] = _metrics(before, after, typical)
        if tokens:
            silent = _root_mean_square(before.z, typical) <= SILENT
            displaced = _root_mean_square(_changes(before.p, after.p), typical)
            worst = max(worst, displaced if silent else _relative(before.z, after.z))
            off = silent or not _flat(before.decoded).any()
            decoded = displaced if off else _relative(before.decoded, after.decoded)
            worst_decoded = max(worst_decoded, decoded)
    return PlainDrift(metrics, worst, worst_decoded)


def _metrics(
    before: Reading, after: Reading, typical: Mapping[Site, float]
) -> dict[str, float | None]:
    z0, z = _flat(before.z), _flat(after.z)
    decoded0, decoded = _flat(before.decoded), _flat(after.decoded)
    off = z[z0 <= 0]
    p_gap = _flat(after.p) - _flat(before.p)
    found = {
        "relative_l2": _ratio((z - z0).norm(), z0.norm()),
        "l2": (z - z0).norm().item(),
        "linf": (z - z0).abs().max().item() if len(z) else math.nan,
        "decode_l2": (decoded - decoded0).norm().item(),
        "decode_relative": _ratio((decoded - decoded0).norm(), decoded0.norm()),
        "floor_violation": _ratio((z0 - z).clamp(min=0).norm(), z0.norm()),
        "reactivated_fraction": (off > 0).double().mean().item(),
        "preactivation_relative": _root_mean_square(_changes(before.p, after.p), typical),
        "preactivation_linf": p_gap.abs().max().item() if len(p_gap) else math.nan,
    }
    undefined = {name for name, value in found.items() if not len(z) or math.isnan(value)}
    return {name: None if name in undefined else value for name, value in found.items()}


def _relative(before: Mapping[Site, Tensor], after: Mapping[Site, Tensor]) -> float:
    """Change relative to the defended norm; infinite where it is NaN."""
    change: float = (_flat(after) - _flat(before)).norm().item()
    return math.inf if math.isnan(change) else change / _flat(before).norm().item()


def _changes(before: Mapping[Site, Tensor], after: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    return {site: after[site] - before[site] for site in before}


def _root_mean_square(values: Mapping[Site, Tensor], typical: Mapping[Site, float]) -> float:
    """Over all values, each relative to what is typical at its site; NaN is infinite."""
    scaled = _flat({site: value / typical[site] for site, value in values.items()})
    found: float = scaled.square().mean().sqrt().item()
    return math.inf if math.isnan(found) else found


def _flat(values: Mapping[Site, Tensor]) -> Tensor:
    """All sites' values in one vector."""
    return torch.cat([values[site].flatten() for site in sorted(values)])


def _ratio(change: Tensor, scale: Tensor) -> float:
    return float(change / scale) if scale > 0 else math.nan
