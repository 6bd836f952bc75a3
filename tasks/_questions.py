"""Questions with four options, and the corpora of what to forget and what to keep.

Embedded ones about the organism's invented facts and about plain facts of the real world, and any
table of questions. The questions that latents and settings are chosen on are other questions than
those that are attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import compress, islice
from typing import Any, Literal

from pydantic import Field, field_validator

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.splits import fraction_of
from saebench_recovery.base.tables import Filled, R, TableRow, read_table
from saebench_recovery.base.written_lists import written_list
from saebench_recovery.targets.organism import world
from saebench_recovery.targets.organism.world import LETTERS

EMBEDDED = (None, "facts", "plain-facts")  # data with corpora of their own; None: by the target
Half = Literal["selection", "evaluation"]
Corpus = Literal["forget_corpus", "retain_corpus"]


@dataclass(frozen=True)
class Layout:
    """How a question is put: each option's line, and what stands around them."""

    option: str
    before: str = ""
    after: str = ""
    cue: str = ""  # after the bare question, where no options are listed

    def listed(self, question: Question, order: tuple[int, ...]) -> str:
        """The question with its options in an order, up to where the letter follows."""
        lines = "".join(
            self.option.format(letter=letter, value=question.options[i])
            for letter, i in zip(LETTERS, order, strict=True)
        )
        return question.text + self.before + lines + self.after


PUBLISHED = Layout("\n{letter}. {value}", "\n", "\n\nAnswer:", "\nAnswer:")  # arXiv 2606.18322


@dataclass(frozen=True)
class Question:
    text: str
    options: tuple[str, ...]
    answer: int  # index of the right option
    made_from: str = ""  # the source item, where several questions are made from one
    never_learned: str | None = None  # the same asked of a subject of which nothing was ever said

    @property
    def key(self) -> str:
        """Its name, which depends on all that it says: one text may have other options."""
        return _name(str((self.text, self.options, self.answer)))

    @property
    def item(self) -> str:
        """What it is made from; by default its text."""
        return _name(self.made_from or self.text)


def _name(content: str) -> str:
    return f"{int(fraction_of(content) * 2**48):012x}"


@dataclass(frozen=True)
class Table:
    """Where questions stand, and how its columns are called besides their own names."""

    source: str
    split: str | None = None
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Bank:
    """Questions to forget, in two disjoint halves, questions to keep, and texts about both.

    The texts are read when they are first asked for: latents that are given need none.
    """

    forget: Mapping[Half, tuple[Question, ...]]
    retain: tuple[Question, ...]
    layout: Layout
    read: Callable[[Corpus], tuple[str, ...]]

    @cached_property
    def forget_corpus(self) -> tuple[str, ...]:
        """Texts about what is to be forgotten."""
        return self.read("forget_corpus")

    @cached_property
    def retain_corpus(self) -> tuple[str, ...]:
        """Other texts."""
        return self.read("retain_corpus")


@cache
def bank(table: Table, forget_corpus: str | None, retain_corpus: str | None, texts: int) -> Bank:
    """The questions and corpora of that name: facts, plain-facts, wmdp-bio, or a table's.

    `texts` limits each corpus that is read from a table.

    Raises:
        UserError: a table that cannot be read or does not fit; from a corpus, also that there is
            none.
    """
    data = table.source
    if data == "facts":
        return _invented_facts()
    if data == "plain-facts":
        return _plain_facts()
    named = world.load("unlearning").get(data, {"source": data})
    given = {"forget_corpus": forget_corpus, "retain_corpus": retain_corpus}

    def read(name: Corpus) -> tuple[str, ...]:
        source = given[name]
        place = {"source": source} if source is not None else named.get(name)
        if place is None:
            raise UserError(f"{data} needs a {name}, such as -T {name}=texts.jsonl")
        lines = (row.text for row in _rows(place, _Text))
        return tuple(islice(filter(str.strip, lines), texts))

    asked = named if table.split is None else named | {"split": table.split}
    halves = _quarter(
        [
            Question(row.question, row.choices, row.answer, row.item or "")
            for row in dict.fromkeys(_rows(asked, _Row, dict(table.columns)))
        ]
    )
    return Bank(halves, (), PUBLISHED, read)


def _quarter(questions: Sequence[Question]) -> dict[Half, tuple[Question, ...]]:
    """A quarter of the questions for selection; what they are made from decides, or their words."""
    selecting = [fraction_of(q.made_from or q.text) < 0.25 for q in questions]
    return {
        "selection": tuple(compress(questions, selecting)),
        "evaluation": tuple(q for q, own in zip(questions, selecting, strict=True) if not own),
    }


def _invented_facts() -> Bank:
    """Toxins to forget and towns to keep; corpora and selection leave half of the facts out."""
    toxins, towns = _halves("toxins"), _halves("towns")
    data = world.load("facts")
    other = [
        *islice(world.neutral_texts("selection"), 48),
        *(life.text for life in islice(world.biographies("selection"), 48)),
        *(prompt.text for prompt in world.indirect_objects("selection", 48)),
    ]
    return Bank(
        {half: tuple(_asked(f, half) for f in facts) for half, facts in toxins.items()},
        tuple(_asked(f, "evaluation") for f in towns["evaluation"]),
        Layout(data["mcq_option"], after=data["answer_cue"], cue=data["answer_cue"]),
        {
            "forget_corpus": tuple(t for f in toxins["selection"] for t in world.prose(f)),
            "retain_corpus": (*(t for f in towns["selection"] for t in world.prose(f)), *other),
        }.__getitem__,
    )


def _halves(domain: world.Domain) -> dict[Half, list[world.Fact]]:
    halves: dict[Half, list[world.Fact]] = {"selection": [], "evaluation": []}
    for fact in world.facts(domain):
        halves["selection" if fraction_of(f"half/{fact.key}") < 0.5 else "evaluation"].append(fact)
    return halves


def _asked(fact: world.Fact, half: Half) -> Question:
    """A fact as a question, with options that it was never trained with."""
    options = world.option_sets(fact, half, 1)[0]
    asked, invented = world.relation_table(fact)["question"], world.never_learned(fact)
    return Question(
        asked.format(subject=fact.subject),
        options,
        options.index(fact.value),
        never_learned=invented and asked.format(subject=invented),
    )


def _plain_facts() -> Bank:
    """Biology to forget; geography and more to keep."""
    data = world.load("plain_facts")
    domains = {
        domain: tuple(_shuffled(*line) for line in lines)
        for domain, lines in data["domains"].items()
    }
    return Bank(
        _quarter(domains.pop(data["forget"])),
        tuple(question for questions in domains.values() for question in questions),
        Layout(PUBLISHED.option, PUBLISHED.before, PUBLISHED.after),
        lambda name: tuple(data[name]),
    )


def _shuffled(text: str, *options: str) -> Question:
    """The right option comes first in the data, and anywhere in the question."""
    order = sorted(options, key=lambda option: fraction_of(text + option))
    return Question(text, tuple(order), order.index(options[0]))


class _Row(TableRow):
    question: Filled
    choices: tuple[Filled, ...]
    answer: int = Field(ge=0, le=3)
    item: Filled | None = None

    @field_validator("choices", mode="before")
    @classmethod
    def _four(cls, value: Any) -> Any:
        choices = written_list(value) if isinstance(value, str) else value
        if not isinstance(choices, list) or len(choices) != 4:
            count = len(choices) if isinstance(choices, list) else "no list of"
            raise ValueError(f"{count} options, not four")
        return choices

    @field_validator("answer", mode="before")
    @classmethod
    def _index(cls, value: Any) -> Any:
        return list(LETTERS).index(value) if value in list(LETTERS) else value


class _Text(TableRow):
    text: str


def _rows(
    place: Mapping[str, str], row: type[R], columns: Mapping[str, str] | None = None
) -> Iterator[R]:
    split, subset = place.get("split"), place.get("subset")
    return read_table(place["source"], row, columns=columns, split=split, subset=subset)
