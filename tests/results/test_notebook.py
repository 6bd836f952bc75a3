"""What notebooks show: the figures of the terminal's tables, and no markup of others'."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from saebench_recovery.results.compare import compare
from saebench_recovery.results.report.notebook import run_html
from saebench_recovery.runs.check import Checked
from saebench_recovery.runs.verify.report import Unchecked, Verification
from saebench_recovery.schema import Attribution, DeltaEffect, Finding, TaskAttribution
from saebench_recovery.spec import RunSpec
from tests.fakes import SITE, flag, made, rate, record, row, run_result, write_run

HOSTILE = "<script>alert('x')</script>"
TAGS = {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not attrs
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def shown(thing: object) -> Page:
    html = thing._repr_html_()  # type: ignore[attr-defined]
    assert isinstance(html, str)
    page = Page(html)
    assert page.tags <= TAGS
    return page


def test_a_run_is_a_table() -> None:
    page = shown(run_result(row("alpha"), row(HOSTILE, flags=(flag("odd"), flag(HOSTILE)))))
    assert "clamp against orthogonal on organism" in page.text
    for text in ("100 of 110", ".80 [.75 .85]", "odd is so; mend it", HOSTILE):
        assert text in page.text, text


def test_a_part_of_a_result_is_no_table() -> None:
    assert rate(1)._repr_html_() is None


@pytest.mark.usefixtures("made_up_runs")
def test_a_comparison_is_tables(tmp_path: Path) -> None:
    configs = {"site": SITE, "defense": {}, "attack": {}, "task": {}}
    spec = {**RunSpec().model_dump(mode="json"), "resolved": {"alpha": configs}}
    flips = [record("alpha", id, recovered=True) for id in "abc"]
    runs = [
        write_run(tmp_path / name, run_result(row(), identity=name, spec=spec), flips)
        for name in ("one", "two")
    ]
    page = shown(compare([f"{HOSTILE}={runs[0]}", runs[1]]))
    assert HOSTILE in page.text
    assert "2 - 1" in page.text
    assert "verdict" in page.text


def test_an_attribution_is_tables() -> None:
    effect = made(DeltaEffect, source="recovering", verdict="nothing is told apart", works=rate(3))
    task = made(TaskAttribution, task=HOSTILE, flips=3, deltas=(effect,))
    page = shown(made(Attribution, tasks=(task,), skipped=("beta: nothing",)))
    for text in (HOSTILE, "nothing is told apart", "works alone", "beta: nothing"):
        assert text in page.text, text


def test_a_check_and_a_verification_are_shown() -> None:
    found = Finding(name="raises", level="error", sentence=HOSTILE, remedy="mend it")
    assert HOSTILE in shown(Checked(alpha=(found,))).text
    assert "nothing found" in shown(Checked(alpha=())).text
    gone = Unchecked(what="evidence", why=HOSTILE)
    assert HOSTILE in shown(made(Verification, identity="ab", unchecked=(gone,))).text


def test_no_control_character_is_shown() -> None:
    assert "\x1b" not in run_html(run_result(row("a\x1b[2Jb")))
