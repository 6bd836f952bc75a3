"""Every case of `tests.cases` gets its right name, and honest pairs none that is not true."""

from __future__ import annotations

from itertools import product

import pytest

from saebench_recovery.base.catalogue import BUILT_IN, Kind
from saebench_recovery.scoring.check.catalogue import CATALOGUE
from tests.cases.examined import examined, of_case
from tests.cases.expected import EXPECTED
from tests.cases.searched import SEARCHES
from tests.cases.table import INTRO, PAGE, SECOND, cases, line_of

CASES = [
    (kind, name, *wanted) for kind, found in EXPECTED.items() for name, wanted in found.items()
]
TASKS = ("ioi", "tpp", "unlearning", "refusal")
# True of honest pairs too: latents that fire on other prompts, what a reconstruction writes.
TRUE_NOTES = {
    "declares-unedited-latents",
    "writes-elsewhere",
    "wrong-target-shown",
}


@pytest.mark.parametrize(("kind", "name", "finding", "level"), CASES)
def test_a_case_gets_its_name(kind: Kind, name: str, finding: str, level: str) -> None:
    found = of_case(kind, name)
    assert (finding, level) in {(one.name, one.level) for one in found}
    (sentence,) = (one.sentence for one in found if one.name == finding)
    assert "\n" not in sentence
    assert repr(name) in sentence
    assert line_of(kind, name, found) in PAGE.read_text("utf-8").splitlines()


def test_the_page_of_cases_has_nothing_else() -> None:
    text = PAGE.read_text("utf-8")
    assert text.startswith(INTRO)
    checked, searched = text.removeprefix(INTRO).split(SECOND)
    shown = [[line.split("`")[1] for line in of.split("\n") if line] for of in (checked, searched)]
    assert shown == [[name for _, name in cases()], list(SEARCHES)]


HONEST = sorted({*product(BUILT_IN["defense"], TASKS)} - {("trajectory", "tpp")})  # no later site


@pytest.mark.parametrize(("defense", "task"), HONEST)
def test_an_honest_pair_passes(defense: str, task: str) -> None:
    found = examined(defense=defense, task=task)
    assert {one.name for one in found} <= TRUE_NOTES
    assert {one.level for one in found} <= {"note", "caution"}


def test_remedies_say_what_to_do() -> None:
    assert all(known.remedy and "\n" not in known.remedy for known in CATALOGUE.values())
    seen = {finding for cases in EXPECTED.values() for finding, _ in cases.values()}
    assert seen <= CATALOGUE.keys()
