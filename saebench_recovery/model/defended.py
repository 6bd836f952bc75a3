"""The active defense: one place that decides what happens at a site, and in which order.

Threat models: under `reclamp` the perturbation comes before the defense at the same site, which
therefore runs again on the perturbed state; under `post` it is added after the defense.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from saebench_recovery.base.plugin import PluginError
from saebench_recovery.base.precision import without_autocast
from saebench_recovery.base.sites import Site
from saebench_recovery.model.backward import Backward, passed_by
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.hooks import Edit
from saebench_recovery.model.intervened import fault_of
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.model.perturbation import ResidualDelta
from saebench_recovery.model.roles import Intervention
from saebench_recovery.model.weights import WeightChange, copied
from saebench_recovery.sae.latents import Latents
from saebench_recovery.spec import ThreatModel


@dataclass
class Trace:
    """What a pass looked like at the watched sites, per site [R, Q, ...], float32.

    `before` and `after` are the residual stream around the defense; `z` and `p` are the
    defended latents' activations and pre-activations, read after the intervention.
    """

    before: dict[Site, Tensor] = field(default_factory=dict)
    after: dict[Site, Tensor] = field(default_factory=dict)
    z: dict[Site, Tensor] = field(default_factory=dict)
    p: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class DefendedModel:
    """A fitted defense on a target, applied at every site, every pass and every token.

    At a site the residual is float32 while a delta is added, the defense intervenes and the
    latents are read; what the next block receives is rounded to the model's own precision.
    `held` are the latents that are read; by default all that the defense declares.
    `backward` is what passes gradients through the defense.
    """

    target: LanguageModel
    defense: Intervention | None
    threat_model: ThreatModel = "reclamp"
    held: Mapping[Site, Latents] | None = None
    backward: Backward = "own"

    @property
    def latents(self) -> Mapping[Site, Latents]:
        """The latents that drift is read from: those that the defense edits, of the declared."""
        if self.held is not None:
            return self.held
        return {} if self.defense is None else self.defense.latents

    def with_weights(self, change: WeightChange | None) -> DefendedModel:
        """The same defense on the model with its weights changed; on itself where they stay."""
        return self if change is None else self.on_a_copy(change)

    def on_a_copy(self, change: WeightChange | None = None) -> DefendedModel:
        """The same on modules of its own, which share the weights that do not change."""
        return replace(self, target=replace(self.target, model=copied(self.target.model, change)))

    @cached_property
    def kind(self) -> Hashable:
        """What an edit's FLOPs depend on: the defense, its settings, and how many latents."""
        if self.defense is None:
            return None
        sizes = [
            (site, len(latents.features))
            for role in (self.defense.latents, self.latents)
            for site, latents in role.items()
        ]
        return (type(self.defense), repr(self.defense.config), *sizes, self.backward)

    def edits(
        self,
        batch: Batch,
        delta: ResidualDelta | None = None,
        trace: Trace | None = None,
        watch: tuple[Site, ...] = (),
    ) -> Mapping[Site, Edit]:
        """Edits for a batch, with a perturbation [E, P, D] if given.

        `trace` is filled at the sites in `watch` and at every defended site.
        """
        defended = self.defense.latents if self.defense is not None else {}
        perturbed = delta.values if delta is not None else {}
        sites = {*defended, *perturbed, *watch}
        return {site: self._edit(site, batch, delta, trace) for site in sorted(sites)}

    def _edit(
        self, site: Site, batch: Batch, delta: ResidualDelta | None, trace: Trace | None
    ) -> Edit:
        added = None
        if delta is not None and site in delta.values:
            added = _placed(delta.values[site], batch.columns(delta.positions_EP), batch)

        def edit(resid_RQD: Tensor) -> Tensor:
            # Rounded to a bfloat16 model's precision, a delta would move latents that it must not.
            before = resid_RQD.float()
            with without_autocast(before.device):
                return at_site(before).to(resid_RQD.dtype)

        def at_site(before: Tensor) -> Tensor:
            if added is not None and self.threat_model == "reclamp":
                before = before + added
            after = self._defended(site, batch, before)
            if added is not None and self.threat_model == "post":
                after = after + added
            if trace is not None:
                self._record(trace, site, before, after)
            return after

        edit.kind = (self.kind, trace is not None, torch.is_grad_enabled())  # type: ignore[attr-defined]  # see `hooks.kinds`
        return edit

    def _defended(self, site: Site, batch: Batch, resid_RQD: Tensor) -> Tensor:
        if self.defense is None or site not in self.defense.latents:
            return resid_RQD
        intervene, own = partial(self.defense.intervene, site), self.backward == "own"
        # Where another gradient passes, the defense does what it does when it is scored.
        with torch.set_grad_enabled(torch.is_grad_enabled() and own):
            changed = intervene(resid_RQD if own else resid_RQD.detach())
        fault = fault_of(changed, resid_RQD)
        if fault is not None:
            raise PluginError(self.defense.title, "intervene", fault.problem, fault=fault.name)
        if self.backward != "own":
            latents = self.defense.latents[site]
            changed = passed_by(intervene, resid_RQD, changed, latents, self.backward)
        spared = ~batch.mask_RQ
        if not self.defense.config.include_bos:
            spared = spared | self.target.sinks(batch)
        return torch.where(spared[:, :, None], resid_RQD, changed)

    def _record(self, trace: Trace, site: Site, before: Tensor, after: Tensor) -> None:
        trace.before[site], trace.after[site] = before, after
        if site in self.latents:
            latents = self.latents[site]
            trace.z[site] = latents.read(after)
            trace.p[site] = latents.preactivation(after)


def _placed(values_EPD: Tensor, column_RP: Tensor, batch: Batch) -> Tensor:
    """Delta rows at their window columns: [R, Q, D], zero elsewhere."""
    C = batch.rows_per_example
    values_RPD = values_EPD if C == 1 else values_EPD.repeat_interleave(C, 0)
    R, Q = batch.ids_RQ.shape
    inside_RP = (column_RP >= 0) & (column_RP < Q)
    # Rows outside the window go to one behind its last: copying rows is much cheaper than adding.
    row_R1 = torch.arange(R, device=column_RP.device)[:, None]
    place_RP = torch.where(inside_RP, row_R1 * Q + column_RP, R * Q)
    placed = values_RPD.new_zeros(R * Q + 1, values_RPD.shape[2])
    placed.index_copy_(0, place_RP.flatten(), values_RPD.flatten(0, 1))
    return placed[:-1].view(R, Q, -1)
