"""What a report is made of: boards, read or ranked from runs, and the attributions beside runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import is_file, is_folder, read_bytes
from saebench_recovery.results.leaderboard import Leaderboard, build
from saebench_recovery.results.store import RESULT, STATE, read_model
from saebench_recovery.schema import Attribution

ATTRIBUTION = "attribution.json"  # beside a run: what `saebench attribute RUN --json` printed


@dataclass(frozen=True)
class Reported:
    """Boards, and attributions by the identity of their run."""

    boards: Sequence[Leaderboard]
    attributions: Mapping[str, Attribution]


def read_reported(places: Sequence[Path]) -> Reported:
    """Read folders of complete runs, folders that hold such folders, and leaderboards.

    Raises:
        UserError: nothing of that kind is there, or it cannot be read.
    """
    runs: list[Path] = []
    boards: list[Leaderboard] = []
    for place in places:
        files = [] if _is_run(place) else _board_files(place)
        boards += [read_model(f, Leaderboard, "make it with `saebench leaderboard`") for f in files]
        runs += [] if files else _runs_at(place)
    return Reported([*boards, *build(runs)], dict(_attributions(runs)))


def _is_run(place: Path) -> bool:
    return place.name == RESULT or any(is_file(place / name) for name in (RESULT, STATE))


def _board_files(place: Path) -> list[Path]:
    if is_folder(place):
        return sorted(place.glob("*.json"))
    return [place] if is_file(place) else []


def _runs_at(place: Path) -> list[Path]:
    if _is_run(place):
        return [place]
    if found := sorted(file.parent for file in place.glob(f"*/{RESULT}")):
        return found
    raise UserError(
        f"no results at {str(place)!r}; give folders of complete runs, or one of leaderboards "
        "(`saebench leaderboard RUNS... --out DIR`)"
    )


def _attributions(runs: Sequence[Path]) -> list[tuple[str, Attribution]]:
    folders = [run if is_folder(run) else run.parent for run in runs]
    files = [folder / ATTRIBUTION for folder in folders if is_file(folder / ATTRIBUTION)]
    found = [_attribution(file) for file in files]
    return [(one.identity, one) for one in found]


def _attribution(file: Path) -> Attribution:
    try:
        return Attribution.model_validate_json(read_bytes(file))
    except ValidationError:
        again = f"`saebench attribute {file.parent} --json > {file}`"
        raise UserError(f"{str(file)!r} is no attribution; make it with {again}") from None
