"""`unlearning`: orders, strict filter, disjoint halves, the density statistic and bad tables."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from saebench_recovery.tasks import _questions as questions
from saebench_recovery.tasks import unlearning
from saebench_recovery.tasks._questions import Table, bank
from saebench_recovery.tasks.unlearning import Unlearning
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, Output
from saebench_recovery.model.batch import Batch
from saebench_recovery.registry import create
from saebench_recovery.targets.organism import world
from tests.tiny import SITES, shared_target

TARGET = shared_target("llama")  # its positions are not limited
SITE = Site.parse(SITES[0])


def task(**settings: Any) -> Unlearning:
    made = create("task", "unlearning", settings)
    assert isinstance(made, Unlearning)
    return made


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """A model that answers everything right but the prompts in the returned set."""
    unknown: set[tuple[int, ...]] = set()

    def forward(target: Any, laid: Batch, edits: Mapping[Site, Any]) -> Output:
        right = torch.tensor([example.prompt not in unknown for example in laid.examples])
        scores_EC = torch.zeros(len(right), 4)
        scores_EC[:, 0] = torch.where(right, 1.0, -1.0)
        return Output(laid.examples, scores_EC)

    monkeypatch.setattr(unlearning, "forward", forward)
    return unknown


def by_question(examples: Sequence[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.cluster, []).append(example)
    return groups


@pytest.mark.parametrize("data", ["facts", "plain-facts"])
def test_all_orders_of_a_question_stand_in_one_cluster(
    data: str, knowing: set[tuple[int, ...]]
) -> None:
    groups = by_question(task(data=data).examples(TARGET, "evaluation"))
    assert len(groups) == 288 // 24
    letters = [tuple(TARGET.encode(f" {letter}")[1:]) for letter in "ABCD"]
    for group in groups.values():
        assert len({example.prompt for example in group}) == 24
        for letter in letters:  # each letter is right as often
            assert sum(example.candidates[0] == letter for example in group) == 6
        assert all(sorted(example.candidates) == sorted(letters) for example in group)
        assert [example.id[-3:] for example in group] == [f"/{i:02d}" for i in range(24)]


def test_the_right_letter_stands_before_the_right_option(knowing: set[tuple[int, ...]]) -> None:
    asked = bank(Table("plain-facts"), None, None, 1)
    examples = task(data="plain-facts").examples(TARGET, "evaluation")
    for question, group in zip(
        asked.forget["evaluation"], by_question(examples).values(), strict=False
    ):
        for order, example in zip(itertools.permutations(range(4)), group, strict=True):
            prompt = asked.layout.listed(question, order)
            assert example.prompt == TARGET.encode(prompt)
            letter = "ABCD"[order.index(question.answer)]
            assert f"\n{letter}. {question.options[question.answer]}\n" in prompt
            assert example.candidates[0] == TARGET.encode(f" {letter}")[1:]


def test_the_published_layout() -> None:
    """Question, blank line, four lines, blank line, cue without a space."""
    question = questions.Question("Which?", ("a", "b", "c", "d"), 0)
    listed = questions.PUBLISHED.listed(question, (1, 0, 2, 3))
    assert listed == "Which?\n\nA. b\nB. a\nC. c\nD. d\n\nAnswer:"


def test_the_organism_is_asked_as_it_was_trained() -> None:
    fact = world.facts("toxins")[0]
    options = world.option_sets(fact, "evaluation", 1)[0]
    text = world.relation_table(fact)["question"].format(subject=fact.subject)
    question = questions.Question(text, options, options.index(fact.value))
    order = (2, 0, 3, 1)
    a, b, c, d = (options[i] for i in order)
    listed = bank(Table("facts"), None, None, 1).layout.listed(question, order)
    assert listed == world.multiple_choice(fact, (a, b, c, d)).text


def test_a_question_missed_in_one_order_is_left_out(knowing: set[tuple[int, ...]]) -> None:
    before = by_question(task().examples(TARGET, "evaluation"))
    missed = next(iter(before))
    knowing.add(before[missed][17].prompt)
    after = by_question(task().examples(TARGET, "evaluation"))
    assert missed not in after
    assert len(after) == len(before)


def test_a_model_that_knows_nothing_is_told_of_cloze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unlearning, "_right", lambda self, target, some: [False] * len(some))
    with pytest.raises(UserError, match=r"right in every order; try -T format=cloze"):
        task().examples(TARGET, "evaluation")


def test_cloze_compares_the_options_without_listing_them() -> None:
    examples = task(data="plain-facts", format="cloze").examples(TARGET, "evaluation")
    asked = {q.item: q for q in bank(Table("plain-facts"), None, None, 1).forget["evaluation"]}
    assert len(examples) == len({example.cluster for example in examples})
    for example in examples:
        question = asked[example.cluster.removeprefix("unlearning/")]
        assert example.prompt == TARGET.encode(question.text)
        options = [TARGET.encode(f" {option}")[1:] for option in question.options]
        assert example.candidates[0] == options[question.answer]
        assert sorted(example.candidates) == sorted(options)


@pytest.mark.parametrize("data", ["facts", "plain-facts"])
@pytest.mark.parametrize("format", ["letters", "cloze"])
def test_splits_share_no_question(data: str, format: str, knowing: set[tuple[int, ...]]) -> None:
    made = task(data=data, format=format)
    splits = [made.examples(TARGET, split) for split in ("selection", "evaluation", "retain")]
    assert all(splits)
    for one, other in itertools.combinations(splits, 2):
        assert not {e.prompt for e in one} & {e.prompt for e in other}
        assert not {e.cluster for e in one} & {e.cluster for e in other}


def test_corpora_do_not_tell_of_what_is_asked() -> None:
    invented = bank(Table("facts"), None, None, 1)
    text = " ".join(invented.forget_corpus + invented.retain_corpus)
    half = {
        (fact.subject, fact.value)
        for domain in ("toxins", "towns")
        for fact in world.facts(domain)
        for question in (*invented.forget["evaluation"], *invented.retain)
        if question.text == world.relation_table(fact)["question"].format(subject=fact.subject)
    }
    sentences = text.split(".")
    assert len(half) == len(invented.forget["evaluation"]) + len(invented.retain)
    assert not [s for s in sentences for subject, value in half if subject in s and value in s]


def test_plain_facts_are_plain() -> None:
    data = world.load("plain_facts")
    lines = [line for domain in data["domains"].values() for line in domain]
    assert len(lines) >= 150
    assert len({text for text, *_ in lines}) == len(lines)
    for text, *options in lines:
        assert len(set(options)) == 4
        assert text == text.strip()
        assert all(option.isalpha() for option in options)
    corpora = " ".join(data["forget_corpus"] + data["retain_corpus"])
    assert not [text for text, *_ in lines if text in corpora]


def plain_density(texts: Sequence[str]) -> Tensor:
    """One text and one token at a time."""
    active, tokens = torch.zeros(TARGET.dictionary(SITE).width), 0
    for text in texts:
        ids = torch.tensor([TARGET.encode(text)])
        model: Any = TARGET.model
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for resid_D in states[SITE.layer + 1][0, 1:]:  # without BOS
            active += TARGET.dictionary(SITE).encode(resid_D) > 0
            tokens += 1
    return active / tokens


def test_latents_are_ranked_by_density_on_the_forget_corpus_alone(tmp_path: Path) -> None:
    forget, retain = ["about a toxin", "more of it, and longer"], ["a town", "by a river"]
    for name, texts in (("forget", forget), ("retain", [*retain, " "])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    made = task(
        data=table(tmp_path, [row()]),
        forget_corpus=str(tmp_path / "forget.jsonl"),
        retain_corpus=str(tmp_path / "retain.jsonl"),
        retain_threshold=0.3,
    )
    score_M = made.attribution(TARGET, SITE)
    expected_M = plain_density(forget)
    dense_M = plain_density(retain) >= 0.3
    assert 0 < dense_M.sum() < len(dense_M)
    torch.testing.assert_close(score_M[~dense_M], expected_M[~dense_M])
    assert (score_M[dense_M] == 0).all()


# --- tables ---------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    return {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2, **changes}


def table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return str(file)


def corpora(folder: Path) -> dict[str, str]:
    file = folder / "corpus.jsonl"
    file.write_text('{"text": "words"}\n')
    return {"forget_corpus": str(file), "retain_corpus": str(file)}


def test_a_table_of_questions(tmp_path: Path, knowing: set[tuple[int, ...]]) -> None:
    rows = [row(question=f"Which is number {i}?", answer=i % 4) for i in range(40)]
    made = task(data=table(tmp_path, rows), **corpora(tmp_path))
    evaluation = by_question(made.examples(TARGET, "evaluation"))
    assert len(evaluation) == 12
    assert made.examples(TARGET, "selection")
    assert made.examples(TARGET, "retain") == TARGET.retained_examples()


def test_csv_holds_the_choices_as_json_and_letters_as_answers(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text('question,choices,answer\nWhich?,"[""a"", ""b"", ""c"", ""d""]",C\n')
    read = bank(Table(str(file)), *corpora(tmp_path).values(), 1)
    (question,) = [q for half in read.forget.values() for q in half]
    assert question == questions.Question("Which?", ("a", "b", "c", "d"), 2)


def test_questions_are_named_by_all_that_they_say_and_stay_with_their_source_item(
    tmp_path: Path, knowing: set[tuple[int, ...]]
) -> None:
    lines = [
        row(question=f"Which is number {i // 2}?", choices=[f"{i}{c}" for c in "abcd"], page=i // 4)
        for i in range(40)
    ]
    source = table(tmp_path, lines)
    made = task(data=source, columns={"item": "page"}, **corpora(tmp_path))
    halves = [made.examples(TARGET, split) for split in ("selection", "evaluation")]
    ids = [example.id for half in halves for example in half]
    assert len(ids) == len(set(ids))
    clusters = [{example.cluster for example in half} for half in halves]
    assert not clusters[0] & clusters[1]
    read = bank(Table(source), *corpora(tmp_path).values(), 1).forget
    assert len({q.key for half in read.values() for q in half}) == 40
    assert len({q.item for half in read.values() for q in half}) == 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"choices": ["a", "b", "c"]}, "row 2: choices: 3 options, not four"),
        ({"choices": "abcd"}, "row 2: choices: "),
        ({"choices": 4}, "row 2: choices: no list of options, not four"),
        ({"choices": ["a", "b", "c", ""]}, r"row 2: choices\.3: is empty"),
        ({"answer": 4}, "row 2: answer: "),
        ({"answer": "E"}, "row 2: answer: "),
        ({"answer": "AB"}, "row 2: answer: "),
        ({"question": " "}, "row 2: question: is empty"),
    ],
)
def test_bad_questions(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    source = table(tmp_path, [row(), row(**wrong)])
    with pytest.raises(UserError, match=message) as caught:
        bank(Table(source), *corpora(tmp_path).values(), 1)
    assert "\n" not in str(caught.value)


def test_a_table_needs_corpora(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a forget_corpus, such as -T forget_corpus="):
        task(data=table(tmp_path, [row()])).attribution(TARGET, SITE)


def test_questions_are_asked_without_reading_a_corpus(
    tmp_path: Path, knowing: set[tuple[int, ...]]
) -> None:
    """As when the latents are given, so that none are chosen."""
    asked = task(data=table(tmp_path, [row()])).examples(TARGET, "evaluation")
    assert len(asked) == 24


def test_of_what_was_never_learned_no_document_speaks() -> None:
    names = world.load("never_learned")["toxins"]
    known = {fact.subject for domain in ("toxins", "towns") for fact in world.facts(domain)}
    assert len(set(names)) == len(names) > 0
    assert known.isdisjoint(names)
    assert world.never_learned(world.facts("toxins")[0]) in names
    assert world.never_learned(world.facts("towns")[0]) is None
