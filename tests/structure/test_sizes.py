"""Files and functions stay small, and no call reads `f(x, True)`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from statistics import median

import pytest

from tests.structure.source import Module, modules, modules_of_tests

FILE_LINES, TEST_FILE_LINES, MEDIAN_LINES = 350, 450, 130
FUNCTION_LINES, PARAMETERS = 60, 7

# Signatures that a library dictates: typer makes an option of each parameter of a command, its help
# beside it, and transformers calls every attention with the same arguments.
DICTATED = {
    "saebench_recovery.cli.run.run",
    "saebench_recovery.cli.sae.train",
    "saebench_recovery.cli.sweep.sweep",
    "saebench_recovery.model.attention.attention",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def parameters(function: Function) -> list[ast.arg]:
    """All but `self` and `cls`. Records are written as fields, so they have none."""
    given = function.args
    rest = [arg for arg in (given.vararg, given.kwarg) if arg]
    return [*positional(function), *given.kwonlyargs, *rest]


def positional(function: Function) -> list[ast.arg]:
    given = function.args
    return [arg for arg in (*given.posonlyargs, *given.args) if arg.arg not in ("self", "cls")]


def positional_booleans(function: Function) -> list[str]:
    """Parameters that hold a truth value and can be passed without their name."""
    given = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(given) - len(function.args.defaults)) + function.args.defaults
    return [
        arg.arg
        for arg, default in zip(given, defaults, strict=True)
        if _says_bool(arg.annotation)
        or (isinstance(default, ast.Constant) and isinstance(default.value, bool))
    ]


def _says_bool(annotation: ast.expr | None) -> bool:
    """`bool`, `bool | None` and `Annotated[bool, ...]`, but not `Sequence[bool]`."""
    match annotation:
        case ast.Name(id="bool"):
            return True
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _says_bool(left) or _says_bool(right)
        case ast.Subscript(
            value=ast.Name(id="Annotated" | "Optional"), slice=ast.Tuple(elts=[inner, *_]) | inner
        ):
            return _says_bool(inner)
        case ast.Constant(value=str(quoted)):
            return _says_bool(ast.parse(quoted, mode="eval").body)
    return False


def pytest_calls(function: Function) -> bool:
    """Tests and fixtures get their arguments by name."""
    marks = (ast.unparse(mark) for mark in function.decorator_list)
    return function.name.startswith("test_") or any("pytest.fixture" in mark for mark in marks)


def dictated(module: Module, function: Function) -> bool:
    return f"{module.name}.{function.name}" in DICTATED


def place(module: Module, function: Function) -> str:
    return f"{module.path}:{function.lineno}: {function.name}"


def check(violations: Iterable[str]) -> None:
    wrong = list(violations)
    assert not wrong, "\n".join(wrong)


def test_files() -> None:
    limits = ((modules().values(), FILE_LINES), (modules_of_tests(), TEST_FILE_LINES))
    check(
        f"{module.path}:1: {module.lines} lines, at most {limit}"
        for files, limit in limits
        for module in files
        if module.lines > limit
    )


@pytest.mark.parametrize("kind", ["package", "tests"])
def test_the_median_file(kind: str) -> None:
    """Package markers do not count: a line each, they would hide long files."""
    files = modules().values() if kind == "package" else modules_of_tests()
    assert median(m.lines for m in files if not m.is_package) <= MEDIAN_LINES


def test_functions() -> None:
    check(
        f"{place(module, function)} has {lines} lines, at most {FUNCTION_LINES}"
        for module in (*modules().values(), *modules_of_tests())
        for function in functions(module)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
        and not dictated(module, function)
    )


def test_parameters() -> None:
    check(
        f"{place(module, function)} has {count} parameters, at most {PARAMETERS}"
        for module in modules().values()
        for function in functions(module)
        if (count := len(parameters(function))) > PARAMETERS and not dictated(module, function)
    )


def test_no_exemption_is_left_over() -> None:
    exceeding = {
        f"{module.name}.{function.name}"
        for module in modules().values()
        for function in functions(module)
        if len(parameters(function)) > PARAMETERS
    }
    assert exceeding == DICTATED


def test_booleans_are_passed_by_name() -> None:
    check(
        f"{place(module, function)}: {name!r} can be passed by position, put `*` before it"
        for module in (*modules().values(), *modules_of_tests())
        for function in functions(module)
        if not pytest_calls(function)
        for name in positional_booleans(function)
    )


@pytest.mark.parametrize(
    ("signature", "wanted"),
    [
        ("self, a: bool", ["a"]),
        ("a: bool | None = None, b=True", ["a", "b"]),
        ("a: Annotated[bool, 'help'] = False", ["a"]),
        ("a: 'bool'", ["a"]),
        ("a: int, *, b: bool = True", []),
        ("a: Sequence[bool], b: int = 1", []),
    ],
)
def test_a_positional_boolean_is_seen(signature: str, wanted: list[str]) -> None:
    (function,) = ast.parse(f"def f({signature}): ...").body
    assert isinstance(function, ast.FunctionDef)
    assert positional_booleans(function) == wanted
