"""Published figures as a page of the leaderboards: external, unverified, ranked with none of ours.

They stand in `saebench_recovery/protocols/published/`; `python -m docs.boards` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterator

from saebench_recovery.protocols.experiment import Experiment, Number, experiments, protocols

HEAD = """\
# External figures

The shares of valid flips that others report as recovered. No evidence stands behind them that could
be recomputed here, so they are ranked with none of our rows.
[The protocol](../docs/protocol.md) says which of our commands asks the same; it prints our figures
beside these and the other published ones.

| task | target | attack | recovered | source |
| --- | --- | --- | --- | --- |
"""


def external() -> str:
    every = [one for name in protocols() for one in experiments(name).values()]
    return HEAD + "".join(line for experiment in every for line in _lines(experiment))


def _lines(experiment: Experiment) -> Iterator[str]:
    for attack, arm in experiment.arms.items():
        for number in arm.numbers:
            if number.ours != "recovery":
                continue
            cells = (
                ", ".join(f"`{task}`" for task in number.tasks or (experiment.task,)),
                experiment.target,
                f"`{attack}`",
                _figure(number),
                experiment.source,
            )
            yield f"| {' | '.join(cells)} |\n"


def _figure(number: Number) -> str:
    if number.n is not None:
        return f"{number.k} of {number.n}"
    ends = "" if number.low is None else f" [{number.low:g}, {number.high:g}]"
    return f"{number.value:g}{ends}"
