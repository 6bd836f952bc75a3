"""Rule 15: a defense is held to the latents that it edits, not to all that it declares.

What a clamp writes lies in the span of the decoder rows of the latents that it changes. So a
declared latent counts as edited where its decoder row lies in the span of what was written on the
evaluation prompts. A defense that writes in another way (a reconstruction, a steering vector) is
held to the declared latents whose activation differs before and after it. An edit that is a trace
of the latent's own activation holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from saebench_recovery.base.precision import exact, in_float64
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense
from saebench_recovery.sae.latents import Latents
from saebench_recovery.schema import Finding
from saebench_recovery.schema.finding import Level
from saebench_recovery.scoring.check.catalogue import finding

WRITTEN = 1e-4  # singular values of what was written that count, over the largest
ROUNDING = 3e-7  # of the residuals: a difference of two of them is no more precise
INSIDE = 0.02  # of a decoder row's length that may lie outside of the span
EXPLAINED = 1e-3  # of what was written (squared) that the rows inside may leave over
TOKENS, MOVED = 64, 0.3  # how many are moved, over their norm, where declared latents are blind
SEEN = 0.05  # of what was written; a latent at its threshold may go on or off by rounding
TRACE = 0.05  # of a latent's largest activation; of the largest edit where it has none
CONSTANT = 0.1  # of the spread that enters; less is left by what tells prompts apart no more
CHANGED = 1e-3  # of the largest activation at the site
LARGEST_RANK = 0.5  # of the width
NAMED = 8


@dataclass(frozen=True)
class Edits:
    """What a defense did at a site: `before_ND` and `after_ND` are tokens of evaluation prompts."""

    site: Site
    latents: Latents
    before_ND: Tensor
    after_ND: Tensor

    @cached_property
    def edited_S(self) -> Tensor:
        """Which of the declared latents are edited, bool [S]."""
        written_ND = self.after_ND - self.before_ND
        span_DK = _span(written_ND, ROUNDING * float(self.before_ND.norm()))
        rows_SD = _unit(self.latents.decoder_SD)
        inside_S = (_outside(rows_SD, span_DK) < INSIDE).to(rows_SD.device)
        if inside_S.any() and _left_over(written_ND, _span(rows_SD[inside_S])) < EXPLAINED:
            return inside_S & self._materially_S(written_ND, rows_SD)
        return self._changed_S()

    def _materially_S(self, written_ND: Tensor, rows_SD: Tensor) -> Tensor:
        """Where more than a trace is written: of a latent's own activation, or of all edits.

        Traces would make a constraint of a rank that the defense does not need.
        """
        write_DS = in_float64(torch.linalg.pinv, rows_SD).to(written_ND.dtype)
        most_S = (written_ND @ write_DS).abs().amax(0)
        active_S = self.latents.read(self.before_ND).abs().amax(0)
        own_S = active_S * self.latents.decoder_SD.norm(dim=1)
        material_S: Tensor = most_S > TRACE * torch.where(own_S > 0, own_S, most_S.max())
        return material_S

    def _changed_S(self) -> Tensor:
        before_NS, after_NS = (self.latents.read(x) for x in (self.before_ND, self.after_ND))
        largest = torch.maximum(before_NS.abs().amax(), after_NS.abs().amax())
        return ((before_NS - after_NS).abs() > CHANGED * largest).any(0)

    def _sees_others(self, defense: Defense) -> bool:
        """Whether what is written changes where no declared latent reads anything else.

        Only where that is claimed, and where a residual can be moved so.
        """
        latents = self.latents
        hidden_DK = _span(_unit(latents.columns_DS.T))
        claimed = defense.sees_only_latents and latents.affine and latents.exactness == "exact"
        if not claimed or hidden_DK.shape[1] == hidden_DK.shape[0]:
            return False
        resid_ND, drawn = self.before_ND[:TOKENS], torch.Generator().manual_seed(0)
        noise_ND = exact(torch.randn(resid_ND.shape, generator=drawn).to(resid_ND))
        aside_ND = _unit(noise_ND - noise_ND @ hidden_DK @ hidden_DK.T).to(resid_ND)
        moved_ND = resid_ND + MOVED * resid_ND.norm(dim=1, keepdim=True) * aside_ND
        with torch.no_grad():
            then_ND, now_ND = (
                defense.intervene(self.site, x[None].clone())[0] - x for x in (resid_ND, moved_ND)
            )
        return float((now_ND - then_ND).norm()) > SEEN * float(then_ND.norm())

    def findings(self, defense: Defense) -> Iterator[Finding]:
        written_ND = self.after_ND - self.before_ND
        if not written_ND.any():
            words = f"{defense.title} changes no evaluation prompt at {self.site}"
            yield finding("changes-nothing", words)
            return
        if _spread(self.after_ND) < CONSTANT * _spread(self.before_ND):
            level: Level | None = None if self.after_ND.any() else "error"
            words = f"{defense.title} returns nearly one and the same residual at {self.site}"
            yield finding("constant-residual", f"{words}, whatever enters", level)
        edited_S, S = self.edited_S, len(self.latents.features)
        reach = torch.cat([self.latents.decoder_SD, self.latents.columns_DS.T])
        beyond = _left_over(written_ND, _span(_unit(reach)))
        if not edited_S.any():
            words = f"{defense.title} edits none of the {S} latents that it declares at {self.site}"
            yield finding("edits-undeclared-latents", words)
        elif self._sees_others(defense):
            words = f"what {defense.title} writes at {self.site} depends on more than the latents"
            yield finding("edits-undeclared-latents", f"{words} that it declares")
        elif beyond > EXPLAINED:
            words = f"{beyond:.0%} of what {defense.title} writes at {self.site}"
            yield finding("writes-elsewhere", f"{words} is not along its declared latents")
        if edited_S.any() and not edited_S.all():
            idle = self.latents.features[~edited_S.to(self.latents.features.device)].tolist()
            names = ", ".join(map(str, idle[:NAMED])) + (", ..." if len(idle) > NAMED else "")
            yield finding(
                "declares-unedited-latents",
                f"{defense.title} declares {S} latents at {self.site} and edits "
                f"{S - len(idle)} on evaluation prompts; not {names}",
            )
        rank = int(torch.linalg.matrix_rank(exact(self.latents.columns_DS[:, edited_S])))
        width = written_ND.shape[1]
        if rank > LARGEST_RANK * width:
            words = f"{defense.title} edits latents of rank {rank} of {width} at {self.site}"
            yield finding("constraint-rank", f"{words}: {rank / width:.0%} are forbidden")


def _spread(rows_ND: Tensor) -> float:
    """How far rows lie from their mean, over their length."""
    return float((rows_ND - rows_ND.mean(0)).norm() / rows_ND.norm().clamp_min(1e-30))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def _span(rows_ND: Tensor, noise: float = 0.0) -> Tensor:
    """An orthonormal basis [D, K] of what the rows span; singular values below `noise` are none."""
    rows_ND = exact(rows_ND)
    # The Gram matrix is D x D however many tokens there are.
    squares_D, vectors_DD = torch.linalg.eigh(rows_ND.T @ rows_ND)
    least = max(noise, WRITTEN * float(squares_D[-1].clamp(min=0).sqrt()))
    span_DK: Tensor = vectors_DD[:, squares_D > least**2]
    return span_DK


def _outside(rows_ND: Tensor, span_DK: Tensor) -> Tensor:
    """Length [N] of what of each row lies outside a span."""
    rows_ND = exact(rows_ND)
    outside_N: Tensor = (rows_ND - rows_ND @ span_DK @ span_DK.T).norm(dim=1)
    return outside_N


def _left_over(rows_ND: Tensor, span_DK: Tensor) -> float:
    """Share of the squared length of all rows that lies outside a span."""
    return float(_outside(rows_ND, span_DK).square().sum() / exact(rows_ND).square().sum())
