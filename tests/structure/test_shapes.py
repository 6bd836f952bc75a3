"""Shape suffixes: `resid_BTD` says what its axes are, in letters that one legend explains.

What can be told from names alone is checked: every letter stands in the legend, which explains it
once; no other file explains a letter; where a shape is unpacked into capital letters, they are the
suffix's; and a product `x_ED @ w_DK` runs over one and the same letter. A letter that is used in a
sense other than the legend's is for a reader to find.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.structure.source import PACKAGE, Module, modules, modules_of_tests

LEGEND = f"{PACKAGE}.interfaces"
SUFFIX = re.compile(r"_*[a-z]\w*_([A-Z0-9]*[A-Z][A-Z0-9]*)")  # a digit is an axis of that size
EXPLANATION = re.compile(r"\b([A-Z]) ([a-z][^,.;:]*)")


def legend() -> dict[str, str]:
    """Letter -> its meaning, from the docstring of the interfaces."""
    text = ast.get_docstring(modules()[LEGEND].tree) or ""
    paragraph = re.search(r"^Shape letters.*?:(.*?)(\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    assert paragraph, f"{modules()[LEGEND].path}:1: no paragraph that begins 'Shape letters'"
    pairs = EXPLANATION.findall(" ".join(paragraph[1].split()))
    assert len({letter for letter, _ in pairs}) == len(pairs), "a letter is explained twice"
    return dict(pairs)


def files() -> tuple[Module, ...]:
    return (*modules().values(), *modules_of_tests())


def suffix(node: ast.AST) -> str | None:
    """The shape letters of a variable, a parameter or an attribute."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            fitting = SUFFIX.fullmatch(name)
            return fitting[1] if fitting else None
        case ast.Call(func=ast.Attribute() as method):  # `delta.norm_E()`
            return suffix(method)
    return None


def unexplained(tree: ast.AST, explained: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            continue  # its name is walked too
        for letter in suffix(node) or "":
            if letter.isalpha() and letter not in explained:
                yield f"{_line(node)}: {ast.unparse(node)}: no {letter} in the legend"


def mismatched(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Assign(
                targets=[ast.Tuple(elts=names)], value=ast.Attribute(value=tensor, attr="shape")
            ) if letters := suffix(tensor):
                taken = [name.id if isinstance(name, ast.Name) else "" for name in names]
                capitals = [t if len(t) == 1 and t.isupper() else None for t in taken]
                wrong = len(taken) != len(letters) or any(
                    t and t != letter for t, letter in zip(capitals, letters, strict=False)
                )
                if wrong and not any(isinstance(name, ast.Starred) for name in names):
                    yield f"{node.lineno}: {ast.unparse(node)}"
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                first, second = suffix(left), suffix(right)
                if first and second and first[-1] != second[-2:][0]:
                    yield f"{node.lineno}: {ast.unparse(node)}"


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def check(found: list[str]) -> None:
    assert not found, "\n".join(dict.fromkeys(found))


def test_every_letter_is_in_the_legend() -> None:
    explained = legend()
    check([f"{f.path}:{line}" for f in files() for line in unexplained(f.tree, explained)])


def test_the_legend_stands_alone() -> None:
    wrong = [
        f"{module.path}:{_line(node) or 1}: explains shape letters: {' '.join(text.split())[:80]}"
        for module in files()
        if module.name not in (LEGEND, __name__)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(text := node.value, str)
        if "hape letters" in text or len(re.findall(r"\b[A-Z] [a-z]+,", text)) > 1
    ]
    check(wrong)


def test_shapes_and_products_agree_with_the_letters() -> None:
    check([f"{f.path}:{line}" for f in files() for line in mismatched(f.tree)])


@pytest.mark.parametrize(
    ("code", "agrees"),
    [
        ("R, Q = ids_RQ.shape", True),
        ("Q, R = ids_RQ.shape", False),
        ("_, rows, D = self.resid_RQD.shape", True),
        ("R, Q = resid_RQD.shape", False),
        ("pooled_ED @ weight_DK", True),
        ("pooled_ED @ bias_D", True),
        ("pooled_ED @ weight_KD", False),
    ],
)
def test_a_letter_in_the_wrong_place_is_seen(code: str, agrees: bool) -> None:
    assert (not list(mismatched(ast.parse(code)))) == agrees


def test_an_unexplained_letter_is_seen() -> None:
    assert len(list(unexplained(ast.parse("def f(x_BZ): ..."), {"B": "batch"}))) == 1
    assert not list(unexplained(ast.parse("x_1BB = MAX_BZ"), {"B": "batch"}))
