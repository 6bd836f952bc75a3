"""The command line: one file per verb.

Verbs import what they need when they run, so that `saebench --help` costs no torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from saebench_recovery import __version__
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.plugin import is_out_of_memory, who_ran_out
from saebench_recovery.base.printable import printable
from saebench_recovery.base.reading import reason
from saebench_recovery.cli.attribute import attribute
from saebench_recovery.cli.check import check
from saebench_recovery.cli.compare import compare
from saebench_recovery.cli.leaderboard import leaderboard
from saebench_recovery.cli.list import list_plugins
from saebench_recovery.cli.new import new
from saebench_recovery.cli.publish import publish
from saebench_recovery.cli.report import report
from saebench_recovery.cli.run import run
from saebench_recovery.cli.sae import sae
from saebench_recovery.cli.schema import schema
from saebench_recovery.cli.show import show
from saebench_recovery.cli.sweep import sweep
from saebench_recovery.cli.sweep_layer import sweep_layer
from saebench_recovery.cli.verify import verify

LONGEST = 2000  # characters of an error
# Raised where words fit no verb, option or type; under this name it is not public in typer.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="saebench",
    help="Was a behaviour removed from a language model, or only one route to it?",
    epilog="Start with: saebench run --defense clamp --attack orthogonal",
    rich_markup_mode=None,  # plain help: rich alone takes a third of the time --help may take
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(sweep)
app.command("sweep-layer")(sweep_layer)
app.command()(check)
app.command("list")(list_plugins)
app.command()(new)
app.command()(show)
app.command()(verify)
app.command()(attribute)
app.command()(compare)
app.command()(report)
app.command()(publish)
app.add_typer(leaderboard, name="leaderboard")
app.command()(schema)
app.add_typer(sae, name="sae")


def _print_version(*, asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show where an error comes from.", envvar="SAEBENCH_DEBUG"),
    ] = False,
) -> None:
    if debug:
        os.environ["SAEBENCH_DEBUG"] = "1"
        # What does not end a run, such as a member of a suite that fails, is logged.
        logging.basicConfig(format="%(message)s")
        logging.getLogger("saebench_recovery").setLevel(logging.DEBUG)


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2.

    `--debug` may stand behind the verb as well, where it is needed in a hurry.
    """
    words = sys.argv[1:] or ["--help"]
    try:
        code = app(sorted(words, key=lambda word: word != "--debug"), standalone_mode=False)
        sys.exit(code or 0)
    except UsageError as error:
        verb = error.ctx.command_path if error.ctx else "saebench"
        refuse(f"{error.format_message()} (see `{verb} --help`)")
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        if os.environ.get("SAEBENCH_DEBUG"):
            traceback.print_exc()
        refuse(str(error))
    except OSError as error:  # of a disk that is full or a path that leads nowhere
        where = "" if error.filename is None else f": {str(error.filename)!r}"
        refuse(f"{reason(error)}{where}")
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError) or is_out_of_memory(error)
        if not (full or "memory" in str(error)):
            raise
        what = f"{who_ran_out(error)}not enough memory"
        refuse(f"{what}; try a smaller --batch-size, or fewer examples with --limit")


def refuse(line: str) -> NoReturn:
    """End with one line on standard error and exit code 2."""
    shown = printable(" ".join(line.split()))
    print("error:", shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}...", file=sys.stderr)
    sys.exit(2)
