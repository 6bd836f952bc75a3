"""Every built-in defense against every built-in attack, on the four tasks of `organism`.

    python leaderboards/organism.py runs [DEFENSE...]
    saebench leaderboard runs/* --out leaderboards/

Each pair is a run like any other: what is complete in the folder is not computed again.
"""

from __future__ import annotations

import sys

from saebench_recovery import run
from saebench_recovery.base.errors import UserError
from saebench_recovery.registry import listing

# Evaluation examples of each task; of tpp, for each of its six classes.
LIMITS = {"ioi": 128, "tpp": 32, "unlearning": None, "refusal": 64}


def main(out: str, defenses: list[str]) -> None:
    for defense in defenses or listing("defense"):
        for attack in listing("attack"):
            for task, limit in LIMITS.items():
                name = f"{defense} against {attack} on {task}"
                try:
                    result = run("organism", defense, attack, [task], limit=limit, out=out)
                except UserError as error:  # a defense that a task does not admit, say
                    print(f"{name}: {error}", flush=True)
                    continue
                spent = result.provenance.seconds
                print(f"{name}: {spent:.0f} s, {result.identity}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
