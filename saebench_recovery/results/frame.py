"""Stored runs as a data frame: a line for each row of each complete run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pandas import DataFrame

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import canonical_json
from saebench_recovery.base.uncollected import uncollected
from saebench_recovery.results.consistency import read_consistent
from saebench_recovery.results.store import RESULT
from saebench_recovery.results.summary import estimate_columns, worst_drift
from saebench_recovery.schema import Row, RunResult

TERMS = ("task", "target", "defense", "attack", "threat_model", "budget", "budget_unit", "seed")
COUNTS = ("n", "base", "valid", "clusters")
NORMS = ("median_norm_recovers", "median_norm_injects", "recovery_advantage")
SIDE_EFFECTS = ("retain_known", "retain_kept", "kl", "ce_increase")


@uncollected()
def load_runs(folder: str | Path) -> DataFrame:
    """All complete runs in a folder as a data frame, a line for each row.

    This needs no model and no torch. Each run is held to its own records first, as by
    `saebench show`; one that is not complete is left out.

    Args:
        folder: of runs, such as `runs`; or of one run.

    Returns:
        The columns are, in this order:

        - `identity`, and the terms of the run: `task`, `target`, `defense`, `attack`,
          `threat_model`, `budget`, `budget_unit`, `seed`;
        - `n`, `base`, `valid`, `clusters`: evaluation examples, those on which the clean model
          shows the behaviour, valid flips, and source items among these;
        - `under_attack`, each measure of the row (`recovery`, `constrained`, `wrong_target`, ...)
          and `figure_*` that only one task has, each with `*_low` and `*_high`, the ends of its
          95 % interval; NaN where there is nothing to count;
        - `median_norm_recovers`, `median_norm_injects` in the unit of the budget, and their ratio
          `recovery_advantage`;
        - `worst_drift`, relative;
        - `retain_known`, `retain_kept`, `kl` and `ce_increase` in nats a token;
        - `flops` and `seconds` of the search;
        - `flags`: names with levels, separated by blanks;
        - `task_settings`, `defense_settings`, `attack_settings`: JSON, defaults filled in.

    Raises:
        UserError: there is no such folder, no complete run in it, or one that cannot be read.

    Example:
        >>> runs = load_runs("runs")
        >>> runs.pivot_table("under_attack", "defense", "attack")
        >>> datasets.Dataset.from_pandas(load_runs("runs"))
    """
    place = Path(folder)
    found = [place] if (place / RESULT).is_file() else [f.parent for f in place.glob(f"*/{RESULT}")]
    if not found:
        what = "no complete run in" if place.is_dir() else "there is no folder"
        raise UserError(f"{what} {str(folder)!r}; give the folder that `saebench run` wrote to")
    results = [read_consistent(run)[0] for run in sorted(found)]
    frame = DataFrame([line for result in results for line in _lines(result)])
    # A figure that no run has would be a column of objects.
    unknown = [name for name in frame if frame[name].isna().all()]
    return frame.astype(dict.fromkeys(unknown, "float64"))


def _lines(result: RunResult) -> Iterator[dict[str, Any]]:
    for row in result.rows:
        resolved = result.spec.get("resolved", {}).get(row.task, {})
        yield {
            "identity": result.identity,
            **{name: getattr(row, name) for name in TERMS},
            **{name: getattr(row.examples, name) for name in COUNTS},
            **_figures(row),
            "flags": " ".join(f"{flag} ({flag.level})" for flag in row.flags),
            **{
                f"{kind}_settings": canonical_json(resolved.get(kind, {}))
                for kind in ("task", "defense", "attack")
            },
        }


def _figures(row: Row) -> dict[str, float | None]:
    estimates = {"under_attack": row.under_attack, **row.measures}
    estimates |= {f"figure_{name}": mean for name, mean in row.figures.items()}
    columns: dict[str, float | None] = {}
    for name, value in estimates.items():
        columns |= estimate_columns(name, value)
    worst = worst_drift(row)
    return {
        **columns,
        **{name: getattr(row.curve, name) for name in NORMS},
        "worst_drift": None if worst is None else worst[0],
        **{name: getattr(row.side_effects, name) for name in SIDE_EFFECTS},
        "flops": row.compute.attack.flops,
        "seconds": row.compute.attack.seconds,
    }
