"""The table of architectures in the docs is what happens; `pytest -m whole` holds all of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import transformers

from saebench_recovery.base.sites import KINDS
from tests.model.architectures import Outcome, outcome, page
from tests.model.tiny_architectures import registered

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
EXACT = 1e-5
LEAST = 60  # tiny models, run or refused
# Of each kind: plain, with norms of outputs, parallel, multiplied, of experts, of latent attention;
# and refused for their attention, sinks, cache, recurrence, scaled logits, place of blocks.
SAMPLE = """
    llama olmo3 glm4 hyperclovax cohere2 gptj granitemoe qwen3_moe deepseek_v3 vaultgemma
    falcon gpt_oss minimax jamba opt bert
"""


@cache
def written() -> dict[str, tuple[str, ...]]:
    """The cells of each row, by the architecture's `model_type`."""
    lines = PAGE.read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    named = [cells for cells in rows if cells[0].startswith("`") and cells[0] != "`model_type`"]
    return {cells[0].strip("`"): tuple(cells[1:]) for cells in named}


def hold(found: Outcome) -> None:
    cells = written()[found.model_type]
    if found.error is None:
        assert len(cells) == 1, f"{found.model_type} is refused: {found.line}"
        assert cells[0] == found.line.replace("|", " ")
        return
    made, error, points = cells
    named = re.findall(r"hook_\w+", points) if points != "all" else list(KINDS)
    assert (made, tuple(named)) == (found.made, found.kinds)
    assert max(found.error, float(error)) < EXACT


def same_version() -> None:
    if f"transformers {transformers.__version__} " not in PAGE.read_text("utf-8"):
        pytest.skip("the page is of another version of transformers")


@pytest.mark.parametrize("model_type", SAMPLE.split())
def test_sampled_rows(model_type: str) -> None:
    same_version()
    hold(outcome(model_type))


@pytest.mark.whole
@pytest.mark.parametrize("model_type", registered())
def test_every_row(model_type: str) -> None:
    same_version()
    hold(outcome(model_type))


def test_the_page_has_every_architecture_and_enough_of_them_are_tried() -> None:
    same_version()
    assert sorted(written()) == registered()
    tried = [cells for cells in written().values() if len(cells) == 3]
    text = PAGE.read_text("utf-8")
    assert len(tried) >= LEAST
    assert f"{len(tried)} run exactly" in text


def test_a_page_of_one_of_each() -> None:
    shown = page(
        [
            Outcome("a", "A", 2e-7, KINDS),
            Outcome("b", "B", 3e-7, KINDS[:1]),
            Outcome("c", "C", line="C is not run: x | y"),
            Outcome("d", line="too large"),
        ]
    )
    assert "| `a` | A | 2e-07 | all |" in shown
    assert "| `b` | B | 3e-07 | `hook_resid_pre` |" in shown
    assert "| `c` | C is not run: x   y |" in shown
    assert "2 run exactly, 1 are refused, of 1 more" in shown
