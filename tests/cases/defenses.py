"""Defenses that break a rule of soundness, each one small; see `tests.cases.expected`."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench_recovery import register_defense
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Defense, Task
from saebench_recovery.sae.latents import Latents
from saebench_recovery.selection.latent_scores import content_residuals
from saebench_recovery.targets.target import Target


class Clamped(Defense):
    """What `clamp` does, for others to spoil."""

    def clamp(self, site: Site, resid_BTD: Tensor, latents: Latents | None = None) -> Tensor:
        latents = latents or self.latents[site]
        z_BTS = latents.read(resid_BTD)
        return latents.write(resid_BTD, torch.where(z_BTS > 0, -2.0 * z_BTS, z_BTS) - z_BTS)


@register_defense("h-detach")
class Detach(Clamped):
    """Its gradient is cut."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD.detach()) + 0.0 * resid_BTD


@register_defense("h-round")
class Round(Clamped):
    """Rounds the residual: its gradient is zero."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return torch.round(self.clamp(site, resid_BTD) / 0.05) * 0.05 + 0.0 * resid_BTD


@register_defense("h-neg-grad")
class NegGrad(Clamped):
    """Forward the clamp, backward its negative."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        clamped_BTD = self.clamp(site, resid_BTD)
        return 2 * clamped_BTD.detach() - clamped_BTD


@register_defense("h-noise")
class Noise(Clamped):
    """Adds noise."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        clamped_BTD = self.clamp(site, resid_BTD)
        size: Tensor = 0.3 * clamped_BTD.norm(dim=-1, keepdim=True) / clamped_BTD.shape[-1] ** 0.5
        return clamped_BTD + size * torch.randn_like(clamped_BTD)


@register_defense("h-first-n")
class FirstN(Clamped):
    """Acts on the first 3 calls only."""

    calls = 0

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        self.calls += 1
        return self.clamp(site, resid_BTD) if self.calls <= 3 else resid_BTD


@register_defense("h-after-many")
class AfterMany(Clamped):
    """Gives way after a thousand calls, counted where no attribute shows it."""

    calls: tuple[list[int]] = ([],)

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        self.calls[0].append(1)
        return self.clamp(site, resid_BTD) if len(self.calls[0]) <= 1000 else resid_BTD


@register_defense("h-grad-mode")
class GradMode(Clamped):
    """Undefended under a gradient, so that an attack believes that it is done."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        clamped_BTD = self.clamp(site, resid_BTD)
        if torch.is_grad_enabled() and resid_BTD.requires_grad:
            return resid_BTD + 0.0 * clamped_BTD
        return clamped_BTD


@register_defense("h-claims-other")
class ClaimsOther(Clamped):
    """Edits the task's latents and declares others."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        self.real = self.latents[site]
        dictionary, used = target.dictionary(site), set(self.real.features.tolist())
        others = [i for i in range(dictionary.width) if i not in used][-16:]
        self.latents = {site: dictionary.defended(torch.tensor(others))}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD, self.real)


@register_defense("h-claims-all")
class ClaimsAll(Clamped):
    """Edits the task's latents and declares the whole dictionary."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        self.real = self.latents[site]
        dictionary = target.dictionary(site)
        self.latents = {site: dictionary.defended(torch.arange(dictionary.width))}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD, self.real)


@register_defense("h-retain-aware")
class RetainAware(Defense):
    """Spares retain and neutral prompts; a constant on all else, with a made-up gradient."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        prompts = [example.prompt for example in task.examples(target, "retain")]
        prompts += [target.encode(text) for text in target.neutral]
        self.known_ND = torch.cat([resid for _, resid in content_residuals(target, site, prompts)])
        self.mean_D = self.known_ND.mean(0)
        drawn = torch.Generator().manual_seed(1)
        width = self.known_ND.shape[1]
        self.turned_DD = torch.linalg.qr(torch.randn(width, width, generator=drawn))[0]

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        flat_ND = resid_BTD.detach().flatten(0, 1)
        nearest_N = torch.cdist(flat_ND, self.known_ND).amin(1)
        known_BT = (nearest_N < 1e-2 * flat_ND.norm(dim=1)).view(resid_BTD.shape[:2])
        turned_BTD = resid_BTD @ self.turned_DD
        constant_BTD = self.mean_D.expand_as(resid_BTD) + (turned_BTD - turned_BTD.detach())
        return torch.where(known_BT[..., None], resid_BTD, constant_BTD)


@register_defense("h-len1")
class Length1(Clamped):
    """Undefended where one token is passed alone, as in generation."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD) if resid_BTD.shape[1] > 1 else resid_BTD


@register_defense("h-window")
class Window(Clamped):
    """Undefended in short windows, which searches run."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD) if resid_BTD.shape[1] > 3 else resid_BTD


@register_defense("h-batch")
class Batch(Clamped):
    """Centres what it adds over the batch."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        added_BTD = self.clamp(site, resid_BTD) - resid_BTD
        return resid_BTD + added_BTD / len(added_BTD)


@register_defense("bad-nan")
class Nan(Clamped):
    """Returns NaN."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD) * float("nan")


@register_defense("bad-shape")
class Shape(Clamped):
    """Returns the last token alone."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD)[:, -1]


@register_defense("bad-shape-bcast")
class Broadcast(Clamped):
    """Returns one token for all."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD).mean(1, keepdim=True)


@register_defense("bad-inplace2")
class InPlace(Clamped):
    """Writes into the residual that it is given."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        resid_BTD += self.clamp(site, resid_BTD) - resid_BTD
        return resid_BTD


@register_defense("bad-state")
class State(Clamped):
    """Acts at every other call."""

    calls = 0

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        self.calls += 1
        return self.clamp(site, resid_BTD) if self.calls % 2 else resid_BTD * 1.0


@register_defense("bad-nothing")
class Nothing(Defense):
    """Changes nothing."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD


@register_defense("bad-raises")
class Raises(Defense):
    """Raises an error."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        raise KeyError("oops")


@register_defense("bad-none")
class ReturnsNone(Clamped):
    """Forgets to return."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:  # type: ignore[return]
        self.clamp(site, resid_BTD)


@register_defense("bad-double")
class Double(Clamped):
    """Returns float64."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD).double()


@register_defense("bad-zero")
class Zero(Defense):
    """Returns zeros."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return resid_BTD * 0


@register_defense("bad-fit")
class Fit(Clamped):
    """Cannot be fitted."""

    def fit(self, target: Target, task: Task) -> None:
        raise ValueError("no\nluck")

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD)


@register_defense("h-many-rows")
class ManyRows(Clamped):
    """Lets nothing come back where so many rows are run as only a search runs."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        clamped_BTD = self.clamp(site, resid_BTD)
        return clamped_BTD if len(resid_BTD) < 500 else 0.1 * clamped_BTD


@register_defense("h-traces")
class Traces(Clamped):
    """Declares forty latents more, and edits each of them by a hundredth."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        ((site, self.real),) = self.latents.items()
        dictionary, real = target.dictionary(site), self.real.features.tolist()
        others = [i for i in range(dictionary.width) if i not in real]
        self.more = dictionary.defended(torch.tensor(others[:40]))
        self.latents = {site: dictionary.defended(torch.tensor([*real, *others[:40]]))}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        clamped_BTD = self.clamp(site, resid_BTD, self.real)
        return self.more.write(clamped_BTD, -0.01 * self.more.read(resid_BTD))


_CALLS: list[Site] = []


@register_defense("h-global-count")
class GlobalCount(Clamped):
    """Counts its calls where no attribute shows it, and gives up after a few."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        _CALLS.append(site)
        return self.clamp(site, resid_BTD) if len(_CALLS) % 40 < 20 else resid_BTD


class OwnTensor(Tensor):
    """A tensor that could calculate as it likes."""


@register_defense("h-own-tensor")
class ReturnsOwnTensor(Clamped):
    """Returns a tensor of a class of its own."""

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD).as_subclass(OwnTensor)


@register_defense("h-no-latents")
class NoLatents(Clamped):
    """Edits latents and declares none, so that nothing is held."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        self.real, self.latents = self.latents, {}

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD, self.real[site])


@register_defense("h-other-directions")
class OtherDirections(Clamped):
    """Writes other directions into the latents that drift is read from."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        for latents in self.latents.values():
            vars(latents)["columns_DS"] = latents.columns_DS.roll(1, 0)

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD)


@register_defense("h-nearly-constant")
class NearlyConstant(Clamped):
    """Returns what prompts have in common, and a thousandth of what enters."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        (site,) = self.latents
        prompts = [example.prompt for example in task.examples(target, "selection")]
        seen = [resid_ND for _, resid_ND in content_residuals(target, site, prompts)]
        self.mean_D = torch.cat(seen).mean(0)

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.mean_D + 1e-3 * self.clamp(site, resid_BTD)


@register_defense("h-reads-by-itself")
class ReadsByItself(Clamped):
    """Puts a function of its own in place of what its latents read, which drift is made of."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        for latents in self.latents.values():
            vars(latents)["preactivation"] = lambda resid_BTD: 1e3 * resid_BTD

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD)


@register_defense("h-another-detector")
class AnotherDetector(Clamped):
    """Puts a detector of its own on the task that judges it."""

    def fit(self, target: Target, task: Task) -> None:
        super().fit(target, task)
        cells = [cell.cell_contents for cell in vars(task)["examples"].__closure__]
        (judge,) = (cell.__self__ for cell in cells if hasattr(cell, "__self__"))
        judge.behaviour = lambda output: judge.objective(output) > 3

    def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
        return self.clamp(site, resid_BTD)
