"""What is written to disk, as frozen pydantic models; nothing here imports torch."""

from saebench_recovery.schema.facts import (
    Compute,
    Cost,
    ExampleCounts,
    Examples,
    Facts,
    PerturbationKind,
    SideEffects,
    Spread,
)
from saebench_recovery.schema.finding import Finding
from saebench_recovery.schema.record import Constraint, Record, Texts
from saebench_recovery.schema.row import (
    ComputePoint,
    Controls,
    Curve,
    CurvePoint,
    Detection,
    Drift,
    DriftPoint,
    Row,
    SuiteMember,
)
from saebench_recovery.schema.run import Provenance, RunResult, RunState, StoredChunk
from saebench_recovery.schema.values import (
    SCHEMA_VERSION,
    Count,
    Finite,
    Mean,
    Rate,
    Share,
    Stored,
)

__all__ = [
    "SCHEMA_VERSION",
    "Compute",
    "ComputePoint",
    "Constraint",
    "Controls",
    "Cost",
    "Count",
    "Curve",
    "CurvePoint",
    "Detection",
    "Drift",
    "DriftPoint",
    "ExampleCounts",
    "Examples",
    "Facts",
    "Finding",
    "Finite",
    "Mean",
    "PerturbationKind",
    "Provenance",
    "Rate",
    "Record",
    "Row",
    "RunResult",
    "RunState",
    "Share",
    "SideEffects",
    "Spread",
    "Stored",
    "StoredChunk",
    "SuiteMember",
    "Texts",
]
