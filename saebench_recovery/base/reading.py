"""The one door for files that others wrote: limits on all that can grow, one line for each fault.

Nothing that is read here constructs an object or imports a module. Parsers are given a file's
content only after its size is known, and what they return is held to `DEEPEST` levels, `VALUES`
values (one that YAML names again counts again), `DIGITS` digits and text that can be encoded.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_recovery.base.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 2**30  # bytes of a file that is read at once
LARGEST_JSON = 2**26
LARGEST_YAML = 2**18  # its parser takes a second for this
LONGEST_LINE = 2**24
DEEPEST, VALUES, DIGITS = 64, 1_000_000, 30
REASON = 200  # characters of a library's own words
# To open what may be a pipe, whose other end need not be there.
UNAWAITED = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class JSONSyntaxError(UserError):
    """Text that does not follow JSON's grammar."""


def is_file(place: str | Path) -> bool:
    """Whether there is such a file; there is none under a name that no disk takes."""
    return os.path.isfile(place)


def is_folder(place: str | Path) -> bool:
    """The same for a folder."""
    return os.path.isdir(place)


def refuse_links(places: Iterable[str | Path]) -> None:
    """Make sure that files are what stands there, and not links to what stands elsewhere.

    Raises:
        UserError: one is a symbolic link, wherever it leads.
    """
    for place in places:
        if os.path.islink(place):
            raise UserError(
                f"cannot read {str(place)!r}: a symbolic link, and the files of a run stand in its "
                "own folder; put the file itself there"
            )


def at_home(place: str | Path) -> Path:
    """The path with `~` spelled out; as it is where nobody has that name."""
    return Path(os.path.expanduser(place))


def reason(error: BaseException) -> str:
    """What an exception says, on one line of bounded length."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = " ".join(str(words).split())
    return line if len(line) <= REASON else f"{line[: REASON - 3]}..."


def read_bytes(file: str | Path, largest: int = LARGEST) -> bytes:
    """The content of an ordinary file.

    Raises:
        UserError: there is none, it cannot be read, or it is larger than that.
    """
    try:
        opened = os.open(file, UNAWAITED)
        try:
            found = os.fstat(opened)
            _check_status(found, file, largest)
            return b"".join(iter(partial(os.read, opened, found.st_size + 1), b""))
        finally:
            os.close(opened)
    except (OSError, ValueError) as error:
        check_file(file, largest)  # of what is no file, that is what is wrong with it
        raise _unread(file, error) from None


def check_file(file: str | Path, largest: int | None = None) -> None:
    """Make sure that a path leads to an ordinary file: reading a pipe or a device may never end.

    Raises:
        UserError: it does not, or to one of more bytes.
    """
    file_size(file, largest)


def file_size(file: str | Path, largest: int | None = None) -> int:
    """How many bytes an ordinary file has.

    Raises:
        UserError: see `check_file`.
    """
    try:
        found = os.stat(file)
    except (OSError, ValueError) as error:
        raise _unread(file, error) from None
    _check_status(found, file, largest)
    return found.st_size


def _check_status(found: os.stat_result, file: str | Path, largest: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"cannot read {str(file)!r}: not an ordinary file")
    if largest is not None and found.st_size > largest:
        raise UserError(f"cannot read {str(file)!r}: {found.st_size} bytes, more than {largest}")


def _unread(file: str | Path, error: Exception) -> UserError:
    return UserError(f"cannot read {str(file)!r}: {reason(error)}")


def read_text(file: Path, largest: int = LARGEST_JSON) -> str:
    """The content of an ordinary file in UTF-8.

    Raises:
        UserError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(file, largest).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"cannot read {str(file)!r}: not UTF-8") from None


def text_lines(file: str, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file of any size; bytes that are not UTF-8 pass as lone surrogates.

    Raises:
        UserError: it cannot be read, or has a line that is too long to be one.
    """
    check_file(file)
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as opened:
            for number, line in enumerate(iter(partial(opened.readline, LONGEST_LINE), ""), 1):
                if len(line) == LONGEST_LINE:
                    raise UserError(f"{file}, line {number}: more than {LONGEST_LINE} characters")
                yield line
    except OSError as error:
        raise _unread(file, error) from None


def is_encodable(text: str) -> bool:
    """Whether the text can be written in UTF-8: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- JSON -------------------------------------------------------------------------------------


def parse_json(text: str | bytes, what: str) -> Any:
    """A JSON value; `what` names it in the message.

    Raises:
        UserError: not JSON (`JSONSyntaxError`), or beyond one of the limits.
    """
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
            object_pairs_hook=_object,
        )
        _check(value, _inside)
    except json.JSONDecodeError as error:
        raise JSONSyntaxError(f"{what}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise UserError(f"{what}: not UTF-8") from None
    except RecursionError:
        raise UserError(f"{what}: nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
    return value


def check_json(value: Any, what: str) -> None:
    """Hold a JSON value that another parser made to the limits.

    Raises:
        UserError: it is beyond one of them.
    """
    try:
        _check(value, _inside)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read, see `read_text` and `parse_json`.
    """
    return parse_json(read_text(file), f"cannot read {str(file)!r}")


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, such as an SAE's `cfg.json`.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise UserError(f"cannot read {str(file)!r}: not a JSON object")
    return value


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, more than {DIGITS}")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:DIGITS]} is not a finite number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key[:REASON]!r} stands twice")
        made[key] = value
    return made


# --- YAML -------------------------------------------------------------------------------------


def read_yaml(file: Path) -> Any:
    """The value in a YAML file, of the kinds that JSON has too.

    Raises:
        UserError: it cannot be read, is not YAML, has a tag that constructs something, or is
            beyond one of the limits.
    """
    import yaml

    what, text = f"cannot read {str(file)!r}", read_text(file, LARGEST_YAML)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check(node, _below)  # before anything is made of it: merging keys copies them
        value = None if node is None else loader.construct_document(node)
        _check(value, _inside)
    except RecursionError:
        raise UserError(f"{what}: nested more than {DEEPEST} deep") from None
    except yaml.YAMLError as error:
        raise UserError(f"{what}: not YAML that holds data alone: {reason(error)}") from None
    except Exception as error:  # its constructors stumble over values that their tags do not fit
        raise UserError(f"{what}: {reason(error)}") from None
    return value


def _below(node: Any) -> Sequence[Any]:
    """The nodes inside one of YAML's."""
    pairs = node.value if node is not None and node.id == "mapping" else []
    keys = [key.value for key, _ in pairs if isinstance(key.value, str) and key.value != "<<"]
    _object([(key, None) for key in keys])
    if node is None or node.id == "scalar":
        return ()
    return [part for pair in pairs for part in pair] or node.value


# --- limits -----------------------------------------------------------------------------------


def _check(root: Any, inside: Callable[[Any], Sequence[Any]]) -> None:
    waiting, count = [(root, 1)], 1
    while waiting:
        value, depth = waiting.pop()
        if below := inside(value):  # most values are leaves
            count += len(below)
            if depth == DEEPEST:
                raise ValueError(f"nested more than {DEEPEST} deep")
            if count > VALUES:
                raise ValueError(f"more than {VALUES} values")
            # Text in ASCII, which most values are, is within all limits.
            waiting += [
                (one, depth + 1) for one in below if not (type(one) is str and one.isascii())
            ]


def _inside(value: Any) -> Sequence[Any]:
    """The values inside one; itself checked."""
    kind = type(value)  # matching a value's class takes several times as long
    if kind is str:
        if not (value.isascii() or is_encodable(value)):
            raise ValueError("text with half of a surrogate pair")
    elif kind is int:
        if abs(value) >= 10**DIGITS:
            raise ValueError(f"a number of more than {DIGITS} digits")
    elif kind is float:
        if not isfinite(value):
            raise ValueError(f"{value} is not a finite number")
    elif kind is list:
        return value  # type: ignore[no-any-return]
    elif kind is dict:
        for key in value:
            if type(key) is not str:
                raise ValueError(f"the key {str(key)[:REASON]} is not text; put it in quotes")
        return [*value, *value.values()]
    elif value is not None and kind is not bool:
        raise ValueError(f"a {kind.__name__}, which JSON does not have; put it in quotes")
    return ()


# --- weights ----------------------------------------------------------------------------------


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the tensors stay there until they are read.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    from safetensors import SafetensorError, safe_open  # it imports torch

    check_file(file)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise _unread(file, error) from None
