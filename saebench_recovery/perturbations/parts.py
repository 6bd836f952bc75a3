"""A residual delta in parts: what it changes in clamped latents, in others, and outside the SAE.

With x the residual that the delta d is added to, z the SAE's activations and r its reconstruction,

    clamped  = (z_C(x + d) - z_C(x)) W_C                 over the clamped latents C
    other    = r(x + d) - r(x) - clamped                 over all other latents
    residual = d - (r(x + d) - r(x))                     what the SAE does not express

so that the three add up to d at every site and position. `top` is the share of `other` that goes
through the few latents that move most there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from saebench_recovery.base.precision import fine
from saebench_recovery.base.sites import Site
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.sae.latents import Dictionary

WHOLE = ("clamped", "other", "residual")
"""The parts that add up to the delta."""
PARTS = (*WHOLE, "top")
TINY = 1e-30  # keeps 0 / 0 at 0
RIDGE = 1e-9  # on inner products of decoder rows, which are about 1
NOTHING = 1e-5  # of the delta's norm: a shorter part is rounding


@dataclass(frozen=True)
class Split:
    """A delta, its parts, and for each a random direction inside the part's own subspace.

    The subspace of latents' parts is spanned by the decoder rows of those that change at the
    token, and a random direction has Gaussian coefficients on them; that of the residual is the
    complement of the rows of all that are active there. A random direction has the part's norm at
    every site and position.
    """

    delta: ResidualDelta
    parts: Mapping[str, ResidualDelta]
    random: Mapping[str, ResidualDelta]

    def without(self, part: str) -> ResidualDelta:
        """The delta with a part knocked out."""
        rest = {s: v - self.parts[part].values[s] for s, v in self.delta.values.items()}
        return replace(self.delta, values=rest)

    def present_E(self, part: str) -> Tensor:
        """Bool [E]: the part is more than rounding."""
        return self.parts[part].norm_E() > NOTHING * self.delta.norm_E()


def scaled(delta: ResidualDelta, norm_E: Tensor) -> ResidualDelta:
    """The same direction with another norm over all sites and positions."""
    factor_E = norm_E / delta.norm_E().clamp_min(TINY)
    values = {site: v * factor_E[:, None, None] for site, v in delta.values.items()}
    return replace(delta, values=values)


def split(
    delta: ResidualDelta,
    base: Mapping[Site, Tensor],
    dictionaries: Mapping[Site, Dictionary],
    clamped: Mapping[Site, Tensor],
    top: int,
    drawn: Sequence[Generator],
) -> Split:
    """Split a delta [E, P, D] at each site.

    Args:
        delta: what is added.
        base: the residual rows [E, P, D] that it is added to.
        dictionaries: the SAE that each site is read with.
        clamped: indices of the clamped latents at each site; none where nothing is clamped.
        top: how many of the other latents `top` holds, at each token.
        drawn: random numbers for each example.
    """
    parts: dict[str, dict[Site, Tensor]] = {part: {} for part in PARTS}
    random: dict[str, dict[Site, Tensor]] = {part: {} for part in PARTS}
    for site, value_EPD in delta.values.items():
        dictionary = dictionaries[site]
        clamped_M = torch.zeros(dictionary.width, dtype=torch.bool, device=value_EPD.device)
        clamped_M[clamped.get(site, torch.empty(0, dtype=torch.long))] = True
        seen = _Moved(dictionary, base[site], value_EPD, clamped_M, top)
        for part in PARTS:
            parts[part][site] = seen.part(part)
            inside_EPD = seen.inside(part, drawn)
            length_EP1 = parts[part][site].norm(dim=2, keepdim=True)
            unit_EPD = inside_EPD / inside_EPD.norm(dim=2, keepdim=True).clamp_min(TINY)
            random[part][site] = length_EP1 * unit_EPD
    return Split(
        delta,
        {part: replace(delta, values=of) for part, of in parts.items()},
        {part: replace(delta, values=of) for part, of in random.items()},
    )


class _Moved:
    """One site's SAE before and after a delta."""

    def __init__(
        self,
        dictionary: Dictionary,
        base_EPD: Tensor,
        delta_EPD: Tensor,
        clamped_M: Tensor,
        top: int,
    ) -> None:
        self.dictionary, self.delta_EPD = dictionary, delta_EPD
        self.ends = (base_EPD, base_EPD + delta_EPD)
        self.z = tuple(dictionary.encode(x) for x in self.ends)
        before, after = self.z
        changed = (after - before).abs() * dictionary.whole.decoder_SD.norm(dim=1)
        self.active = (before != 0) | (after != 0)
        other = torch.where(clamped_M, 0.0, changed)
        most = other.topk(min(top, other.shape[-1]), dim=-1).indices
        few = torch.zeros_like(self.active).scatter(-1, most, value=True)
        self.masks = {
            "clamped": clamped_M.expand_as(few),
            "other": other > 0,
            "top": few & (other > 0),
        }

    def _expressed(self, mask: Tensor) -> Tensor:
        """What some latents write after the delta, less what they wrote before."""
        wrote = [
            self.dictionary.whole.decoded(z * mask) * self.dictionary.scale(x)
            for z, x in zip(self.z, self.ends, strict=True)
        ]
        return wrote[1] - wrote[0]

    def part(self, name: str) -> Tensor:
        if name in ("clamped", "top"):
            return self._expressed(self.masks[name])
        before, after = (
            self.dictionary.decode(z, x) for z, x in zip(self.z, self.ends, strict=True)
        )
        if name == "residual":
            return self.delta_EPD - (after - before)
        return after - before - self._expressed(self.masks["clamped"])

    def inside(self, name: str, drawn: Sequence[Generator]) -> Tensor:
        """A random direction [E, P, D] inside the subspace of a part, of any length."""
        E, P, D = self.delta_EPD.shape
        of_rows = name != "residual"
        width = self.dictionary.width if of_rows else D
        noise = torch.stack([torch.randn(P, width, generator=g) for g in drawn]).to(self.delta_EPD)
        if of_rows:
            return self.dictionary.whole.decoded(noise * self.masks[name])
        each = [self._beside_active(noise[e], self.active[e]) for e in range(E)]
        return torch.stack(each)

    def _beside_active(self, noise_PD: Tensor, active_PM: Tensor) -> Tensor:
        """Noise without what lies in the span of the decoder rows that are active at its token."""
        most = max(1, int(active_PM.sum(1).max()))
        there_PK, index_PK = active_PM.int().topk(most, dim=1)
        rows_PKD = fine(self.dictionary.whole.decoder_SD[index_PK]) * there_PK[..., None]
        # Rows may depend on each other, and those that fill up are zero.
        gram_PKK = rows_PKD @ rows_PKD.mT
        gram_PKK.diagonal(dim1=1, dim2=2).add_(RIDGE)
        noise_PD1 = fine(noise_PD)[..., None]
        share_PK1 = torch.linalg.solve(gram_PKK, rows_PKD @ noise_PD1)
        beside: Tensor = (noise_PD1 - rows_PKD.mT @ share_PK1)[..., 0]
        return beside.to(noise_PD)
