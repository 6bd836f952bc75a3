"""What a worker on a cluster does: carry cells out into folders of attempts, and publish none."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason
from saebench_recovery.runs.plan import Plan
from saebench_recovery.runs.shared import Shared
from saebench_recovery.runs.sweep.engine import Orders, Outcome, attempt


class CellWorker:
    """One process on some machine, with what its cells share."""

    def __init__(self) -> None:
        self._shared = Shared(several=True)

    def begin(self, folder: str, prepare: Callable[[], None], plan: Plan) -> str | None:
        """Get ready in a working folder; the line that says why this machine cannot, or None.

        A machine whose code, data or packages are not those of the plan would store its own rows
        under the plan's identity.
        """
        with suppress(OSError):  # where there is none, relative paths say so
            os.chdir(folder)
        here = socket.gethostname()
        try:
            prepare()
            own = Plan.of(plan.spec).identity
        except UserError as refused:
            return f"{here}: {refused}"
        if own != plan.identity:
            return f"{here} has other code, data or packages than the machine of this command"
        return None

    def carry_out(self, plan: Plan, orders: Orders, place: str) -> Outcome:
        """The same as `attempt`, into a folder or address that is this attempt's own."""
        anew = replace(orders, force=False)
        if not is_address(place):
            return attempt(plan, replace(anew, out=Path(place)), self._shared)
        from saebench_recovery.runs.sweep.address import send  # imports fsspec

        with TemporaryDirectory() as here:
            outcome = attempt(plan, replace(anew, out=Path(here)), self._shared)
            if outcome.error is None:
                try:
                    send(Path(here) / plan.identity, place)
                except Exception as error:  # of the file system's driver
                    return Outcome(plan.identity, f"cannot write to {place!r}: {reason(error)}")
            return outcome


def is_address(out: str) -> bool:
    """Whether results go to an address that fsspec reaches, and not to a folder."""
    return "://" in out
