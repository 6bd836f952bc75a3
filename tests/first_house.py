"""The figures of the first house (commit ecf9486), which the second one must give again.

    python -m tests.first_house tests/data/first-house.json [DEFENSE...]

writes them with whatever version of the package is installed: every built-in defense against every
attack on the four tasks of `organism`, and the default run whole. One thread: sums in another order
differ in their last digits, and a search carries that further. A file that is there already is
added to, so that a killed run goes on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT = 32
SCOPES = ("perturbed", "readout", "later")
TASKS = ("ioi", "unlearning", "refusal", "tpp")
ATTACKS = (
    "orthogonal",
    "unconstrained",
    "random-direction",
    "auto-v1",
    "jacobian",
    "soft-suffix",
    "gcg",
)


def figures(row: Any) -> dict[str, Any]:
    """Counts, rates, drift and norms of a row of schema version 1 or 2."""
    zero_reactivation = (
        row.measures["zero_reactivation"] if hasattr(row, "measures") else row.zero_reactivation
    )
    rates = {
        "recovery": row.recovery,
        "constrained": row.constrained,
        "base_like": row.base_like,
        "zero_reactivation": zero_reactivation,
        "nothing": row.controls.nothing,
        "random_direction": row.controls.random_direction,
        "wrong_target": row.controls.wrong_target,
    }
    curve = {f"curve {p.budget:g}": (p.recovery, p.wrong_target) for p in row.curve.points}
    means = {
        "fidelity": row.fidelity,
        "norm": row.norm,
        **{f"figure {name}": mean for name, mean in row.figures.items()},
        **{
            f"drift {scope} {name}": getattr(row.drift[scope], name)
            for scope in SCOPES
            for name in type(row.drift[scope]).model_fields
        },
    }
    return {
        "examples": [row.examples.n, row.examples.base, row.examples.valid],
        **{name: [rate.k, rate.n] for name, rate in rates.items()},
        **{name: [rate.k for rate in pair] for name, pair in curve.items()},
        **{name: [mean.n, mean.mean, mean.median, mean.max] for name, mean in means.items()},
        "smallest": [row.curve.median_norm_recovers, row.curve.median_norm_injects],
        "retained": [
            row.side_effects.retain_n,
            row.side_effects.retain_known / row.side_effects.retain_n,
            row.side_effects.retained,
        ],
        "neutral": [row.side_effects.kl, row.side_effects.ce_increase],
        "suite": [[m.attack, m.tried, m.broken] for m in row.suite],
    }


def main(file: Path, defenses: list[str], attacks: list[str]) -> None:
    import torch

    from saebench_recovery import run
    from saebench_recovery.base.errors import UserError
    from saebench_recovery.registry import listing

    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    pairs = [(d, a) for a in attacks or ATTACKS for d in defenses or listing("defense")]
    jobs: list[tuple[str, str, list[str], int | None]] = [
        (d, a, [task], LIMIT) for d, a in pairs for task in TASKS
    ]
    if "clamp" in (defenses or ["clamp"]) and "orthogonal" in (attacks or ["orthogonal"]):
        jobs.insert(0, ("clamp", "orthogonal", list(TASKS), None))
    for defense, attack, tasks, limit in jobs:
        key = f"{defense} / {attack} / {' '.join(tasks)} / {limit}"
        if key in found:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as out:
            try:
                result = run("organism", defense, attack, tasks, limit=limit, out=out)
                found[key] = {row.task: figures(row) for row in result.rows}
            except UserError as error:  # a defense that a task does not admit, say
                found[key] = str(error)
        print(f"{key}: {time.monotonic() - started:.0f} s", flush=True)
        file.write_text(json.dumps(found, indent=0))


if __name__ == "__main__":
    words = sys.argv[2:]
    chosen = [w for w in words if w in ATTACKS]
    main(Path(sys.argv[1]), [w for w in words if w not in ATTACKS], chosen)
