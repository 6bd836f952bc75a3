"""A defense that can be watched: by one of the harness's monitors, or by a detector of its own."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from saebench_recovery.base.plugin import Plugin, PluginConfig
from saebench_recovery.base.sites import Site
from saebench_recovery.monitors.calibration import Monitor, MonitorName


class Watched(Plugin, kind="defense"):
    """The part of a defense that says when it is attacked.

    `false_alarms` is the share of undisturbed prompts on which `alarm` is meant to ring, or None
    for a defense without a detector.
    """

    class Config(PluginConfig):
        monitor: MonitorName | None = Field(
            default=None, description="detector that watches it: error, mahalanobis or probe"
        )
        false_alarms: float = Field(
            default=0.05,
            gt=0,
            lt=1,
            description="share of undisturbed prompts on which the monitor may ring",
        )

    config: Any  # narrowed by every defense
    _monitor: Monitor | None = None

    @property
    def false_alarms(self) -> float | None:
        return None if self._monitor is None else float(self.config.false_alarms)

    def alarm(self, site: Site, resid_BTD: Tensor, *, entering: bool) -> Tensor:
        """Suspicion [B, T] of each token, positive where the detector rings.

        It is shown the residual that enters the defense or, where a perturbation comes after it
        (threat model `post`), the one that leaves. Called only where `false_alarms` is given.
        """
        if self._monitor is None:
            raise NotImplementedError(f"defense {self.name!r} has no detector")
        return self._monitor.alarm(site, resid_BTD, entering=entering)
