"""Chat templates, rendered by transformers in its own sandbox, in a process that can be stopped.

A template is a program: its sandbox keeps it from files and imports, but not from a loop, a power
or a string that never ends. So it runs beside this process, under limits on time and memory; what
it raises comes back as one line.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
from datetime import datetime, tzinfo
from typing import IO, Any, Self

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import parse_json, reason

SECONDS = 20  # of one rendering
STARTING = 300  # seconds until the process has imported what it needs, on a busy machine
MEMORY = 4 * 2**30  # bytes of address space
LONGEST = 2**20  # characters of a rendered chat
TODAY = datetime(2025, 1, 1)  # for templates that read the clock: prompts are the same every day
# The same code as here, wherever that lies.
PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    f"from {__name__} import serve; serve(sys.stdin, sys.stdout)"
)

_process: subprocess.Popen[str] | None = None


def rendered(template: str, messages: list[dict[str, str]], tokens: dict[str, Any]) -> str:
    """The chat up to where the answer begins; `tokens` are what the template sees by name.

    A template that asks for the date is told that it is `TODAY`.

    Raises:
        UserError: the template fails, takes too long or writes too much.
    """
    asked = {"template": template, "messages": messages, "tokens": tokens}
    answer = parse_json(_ask(json.dumps(asked, default=str)), "the chat template's process")
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return str(answer["text"])


def _ask(line: str) -> str:
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        _answer(_process, STARTING)
    assert _process.stdin is not None
    try:
        _process.stdin.write(f"{line}\n")
        _process.stdin.flush()
    except OSError as error:
        raise UserError(f"its process is gone: {reason(error)}") from None
    return _answer(_process, SECONDS)


def _answer(process: subprocess.Popen[str], seconds: float) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else ""
    if not line:
        stop()
        raise UserError(
            f"it takes more than {seconds:g} s" if not ready else "its process ran out of memory"
        )
    return line


@atexit.register
def stop() -> None:
    """End the process, if there is one."""
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


class _StoppedClock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromisoformat(TODAY.isoformat())


def serve(asked: IO[str], answers: IO[str]) -> None:
    """Render whatever is asked, a JSON line each, until the other side is gone."""
    import resource

    from transformers.utils import chat_template_utils as library

    library.datetime = _StoppedClock  # in this process, whose only use of it is a template's
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("{}", file=answers, flush=True)
    for line in asked:
        chat = json.loads(line)
        try:
            (text,), _ = library.render_jinja_template(
                conversations=[chat["messages"]],
                chat_template=chat["template"],
                add_generation_prompt=True,
                **chat["tokens"],
            )
            if len(text) > LONGEST:
                raise ValueError(f"it writes {len(text)} characters, more than {LONGEST}")
            answer = {"text": text}
        except Exception as error:  # whatever a template makes its sandbox raise
            answer = {"error": f"{type(error).__name__}: {reason(error)}"}
        print(json.dumps(answer), file=answers, flush=True)
