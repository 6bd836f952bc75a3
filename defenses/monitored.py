"""The clamp under each of the monitors, by a name of its own.

Any other defense takes a monitor as `-D monitor=...`.
"""

from __future__ import annotations

from pydantic import Field
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery.monitors.calibration import MonitorName
from saebench_recovery.registry import register_defense


@register_defense("residual-monitor")
class ResidualMonitor(Clamp):
    """Clamps, and rings where the SAE's error is unlike the errors of undisturbed text."""

    class Config(Clamp.Config):
        monitor: MonitorName | None = Field(default="error", description="detector")


@register_defense("mahalanobis-monitor")
class MahalanobisMonitor(Clamp):
    """Clamps, and rings where the residual is unlike undisturbed ones."""

    class Config(Clamp.Config):
        monitor: MonitorName | None = Field(default="mahalanobis", description="detector")


@register_defense("probe-monitor")
class ProbeMonitor(Clamp):
    """Clamps, and rings where a probe reads a step towards the behaviour."""

    class Config(Clamp.Config):
        monitor: MonitorName | None = Field(default="probe", description="detector")
