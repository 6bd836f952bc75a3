"""Bad input by the thousand, from a seed: command lines and files that no run can be made of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from saebench_recovery.spec import OPTIONS

Files = dict[str, bytes]
MOST = 240  # cases of a kind

# Words that are no number, no name of ours and no setting.
WORDS = (
    "", " ", "nan", "-inf", "1e309", "9" * 5000, "-1", "None", "0x10", "a b", "a" * 3000, "\udcff",
    "[" * 5000, '{"a": 1}', "\u202egpj", "\x1b[2J", "=", "%s", "$(touch x)", "💥", "..", "~", "1;2",
    "<script>", "'", "null", "true", "-", "[]", "1e", "\n", "nowhere/at@all", "@", "a:b",
)  # fmt: skip
# What no field of a result has in its place. Where a field may be null, that is no nonsense.
VALUES: tuple[Any, ...] = (
    "text", [], {}, [[1]], {"a": {"b": []}}, -1.5e308, 10**40, "\x1b[2J", "\ud800", float("nan"),
    "9" * 5000, "../../etc", ["a"] * 3, {"": None},
)  # fmt: skip
NUMERIC = ("budget", "seed", "limit", "flops", "batch_size")
CHOSEN = ("defense", "attack", "tasks", "protocol", "threat_model", "budget_unit", "dtype")
SETTINGS = {
    "-D": ("latents", "value", "multiplier", "positive_only", "features", "include_bos", "site"),
    "-A": ("steps", "lr", "objective", "margin", "through", "shared", "positions", "sites"),
    "-T": ("data", "limit", "", "nope"),
}
TARGET: dict[str, Any] = {
    "model": "nowhere",
    "description": "none",
    "saes": {"blocks.1.hook_resid_post": "nowhere/sae"},
    "tasks": {"ioi": {"site": "blocks.1.hook_resid_post", "defenses": {"clamp": {"latents": 3}}}},
}


@dataclass(frozen=True)
class Case:
    """A command line with files; `{run}`, `{board}` and `{here}` stand for folders."""

    words: tuple[str, ...]
    files: Files = field(default_factory=dict)
    change: tuple[str, Callable[[bytes], bytes]] | None = None
    environment: tuple[str, str] | None = None

    def __str__(self) -> str:
        shown = " ".join(word if len(word) < 60 else f"{word[:60]}..." for word in self.words)
        return f"{shown!r} {sorted(self.files)} {self.change and self.change[0]} {self.environment}"


def options() -> Iterator[Case]:
    """Every option of a run, also from the environment."""
    for one in OPTIONS:
        name = one.path[-1]
        if name not in (*NUMERIC, *CHOSEN) and one.path[0] != "limits":
            continue
        for word in WORDS:
            if one.option.unset is not None and word == one.option.unset:
                continue
            yield Case(("run", "--json", f"{one.option.flag}={word}"))
            if word.strip() and word == word.encode(errors="replace").decode():
                yield Case(("run", "--json"), environment=(one.option.variable, word))


def plugin_settings() -> Iterator[Case]:
    for flag, keys in SETTINGS.items():
        for key in keys:
            for word in WORDS:
                if key == "positive_only" and word == "true":
                    continue
                yield Case(("run", "--json", "--task", "alpha", flag, f"{key}={word}"))


def lines() -> Iterator[Case]:
    """Words that no verb knows, and paths that lead nowhere."""
    verbs = (
        ("run",), ("check",), ("list",), ("show",), ("verify",), ("compare",), ("publish",),
        ("leaderboard",), ("leaderboard", "rank"), ("leaderboard", "add"), ("leaderboard", "check"),
        ("schema",), ("sae",), ("sae", "train"), ("sae", "eval"), ("nope",),
    )  # fmt: skip
    for verb in verbs:
        for word in WORDS:
            yield Case((*verb, word))
        yield Case((*verb, "--nope"))
        yield Case((*verb, "{here}/none", "{run}/records.jsonl", "--seed"))


def training() -> Iterator[Case]:
    base = ("sae", "train", "--hook", "blocks.1.hook_resid_post", "--out", "{here}/sae")
    for option in ("--width", "--l0", "--tokens", "--seed", "--architecture", "--hook", "--target"):
        for word in WORDS:
            yield Case((*base, f"{option}={word}"))


def targets(drawn: random.Random) -> Iterator[Case]:
    """Targets in files that are damaged, or hold other things."""
    for number in range(160):
        ending = ("yaml", "json")[number % 2]
        verb = (("run", "--json"), ("check",), ("sae", "eval", "--text", "x"))[number % 3]
        content = damaged(json.dumps(TARGET, indent=1).encode(), drawn)
        yield Case((*verb, "--target", f"{{here}}/t.{ending}"), {f"t.{ending}": content})


def plugins(drawn: random.Random) -> Iterator[Case]:
    """Files that are no Python, or raise, or define nothing that is registered."""
    bodies = (b"raise SystemExit(3)", b"1 / 0", b"import nope", b"(" * 500, b"\xff\xfe", b"\0")
    for number in range(40):
        body = bodies[number] if number < len(bodies) else drawn.randbytes(40) + b"\n("
        yield Case(("run", "--json", "--plugin", "{here}/p.py"), {"p.py": body})


# Verbs that read a run, and those that read entries with their evidence.
OF_RUNS: tuple[tuple[str, ...], ...] = (
    ("show", "{run}"),
    ("compare", "{run}", "{run}"),
    ("verify", "{run}"),
    ("leaderboard", "{run}", "--out", "{here}/boards"),
    ("publish", "{run}", "--out", "{here}/published"),
)
OF_ENTRIES: tuple[tuple[str, ...], ...] = (
    ("leaderboard", "check", "{board}"),
    ("verify", "{board}"),
    ("leaderboard", "add", "{board}", "--out", "{here}/other"),
)
FILES = ("result.json", "run.json", "records.jsonl", "chunks.jsonl", "evidence/00000.safetensors")


def stored(drawn: random.Random) -> Iterator[Case]:
    """Each file of a run or of an entry, damaged, in front of every verb that reads it."""
    for number in range(300):
        file = FILES[number // len(OF_RUNS) % len(FILES)]
        yield Case(OF_RUNS[number % len(OF_RUNS)], change=(f"run/{file}", _damage(drawn)))
    for number in range(150):
        file = ("entry", *FILES)[number // len(OF_ENTRIES) % 6]
        yield Case(OF_ENTRIES[number % len(OF_ENTRIES)], change=(f"board/{file}", _damage(drawn)))


def _damage(drawn: random.Random) -> Callable[[bytes], bytes]:
    seed = drawn.random()
    return lambda content: damaged(content, random.Random(seed))


def damaged(content: bytes, drawn: random.Random) -> bytes:
    """Another value or none at some place of JSON, or bytes that are cut, turned or put in."""
    kind = drawn.randrange(8)
    at = drawn.randrange(len(content) or 1)
    if kind == 0:
        return content[: at // 2]
    if kind == 1:
        return content[:at] + drawn.randbytes(8) + content[at:]
    if kind == 2:
        return drawn.choice(
            (b"", b"[" * 10**5, b"\0" * 100, b"null", b"{}", b"[]", b'"a"', b"\xff")
        )
    before, line, after = _a_line(content, drawn)
    try:
        value = json.loads(line)
    except ValueError:
        return content[: at // 2]
    place = drawn.choice(list(_places(value)))
    old, new = _at(value, place), drawn.choice(VALUES)
    if kind == 3 and old:  # what is empty may be left out
        new = ...
    elif new == old:
        new = "text"
    return before + json.dumps(_changed(value, place, new)).encode() + after


def _a_line(content: bytes, drawn: random.Random) -> tuple[bytes, bytes, bytes]:
    """All of a JSON document, or one of the lines of a JSONL file."""
    try:
        json.loads(content)
    except ValueError:
        parts = content.split(b"\n")
        number = drawn.randrange(max(1, len(parts) - 1))
        ends = (b"\n" if number else b""), (b"\n" if number < len(parts) - 1 else b"")
        return (
            b"\n".join(parts[:number]) + ends[0],
            parts[number],
            ends[1] + b"\n".join(parts[number + 1 :]),
        )
    return b"", content, b""


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*before, key)
        yield from _places(inner, (*before, key))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    inner = _at(value, place[:-1])
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def every(seed: int = 0) -> dict[str, list[Case]]:
    """All cases, by what is bad in them; of what there are more, `MOST` at random."""
    drawn = random.Random(seed)
    kinds = {
        "options": list(options()),
        "settings": list(plugin_settings()),
        "lines": list(lines()),
        "training": list(training()),
        "targets": list(targets(drawn)),
        "plugins": list(plugins(drawn)),
        "stored": list(stored(drawn)),
    }
    return {name: drawn.sample(cases, min(MOST, len(cases))) for name, cases in kinds.items()}
