"""The invented world of the organism: every prompt and document, rendered from the task data.

The training corpus and the benchmark's tasks both draw from here, so they cannot diverge.
All answers carry their leading space, as the tokenizer sees them. No torch is imported.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from saebench_recovery.base.splits import Part, fraction_of, split_of

LETTERS = "ABCD"
Domain = Literal["toxins", "towns"]
Mode = Literal["open", "guarded"]
Kind = Literal["forbidden", "harmless"]
Options = tuple[str, str, str, str]


@cache
def load(name: str) -> Any:
    """The parsed task data `tasks/data/<name>.json`."""
    file = resources.files("saebench_recovery.tasks") / "data" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


# --- indirect objects ---------------------------------------------------------------------------


@dataclass(frozen=True)
class IndirectObject:
    """`text` ends just before the indirect object; `answer` is right, `wrong` is the subject."""

    key: str
    template: str
    text: str
    answer: str
    wrong: str


def name_pairs(split: Part) -> list[tuple[str, str]]:
    """Unordered pairs of names of a split (about 10 % selection, 15 % evaluation)."""
    pairs = itertools.combinations(load("ioi")["names"], 2)
    return [
        p for p in pairs if split_of("ioi/" + "+".join(p), selection=0.1, evaluation=0.15) == split
    ]


def indirect_object(
    pair: tuple[str, str], template: str, place: str, thing: str, *, subject_first: bool
) -> IndirectObject:
    """Render one prompt; `pair` is (indirect object, subject), in either order in the text."""
    recipient, subject = pair
    first, second = (subject, recipient) if subject_first else (recipient, subject)
    text = load("ioi")["templates"][template].format(
        first=first, second=second, subject=subject, place=place, object=thing
    )
    return IndirectObject("+".join(sorted(pair)), template, text, f" {recipient}", f" {subject}")


def indirect_objects(
    split: Part, count: int, seed: int = 0, template: str | None = None
) -> list[IndirectObject]:
    """`count` different prompts of a split, ABBA and BABA alike, drawn with `seed`."""
    data, rng = load("ioi"), random.Random(seed)
    pairs, templates = name_pairs(split), [template] if template else list(data["templates"])
    prompts: dict[str, IndirectObject] = {}
    while len(prompts) < count:
        pair = rng.choice(pairs)
        prompt = indirect_object(
            pair if rng.random() < 0.5 else pair[::-1],
            rng.choice(templates),
            rng.choice(data["places"]),
            rng.choice(data["objects"]),
            subject_first=rng.random() < 0.5,
        )
        prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


# --- invented facts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One invented fact: the `relation` of `subject` is `value`."""

    domain: Domain
    relation: str
    subject: str
    value: str

    @property
    def key(self) -> str:
        return f"{self.domain}/{self.subject}/{self.relation}"


@dataclass(frozen=True)
class MultipleChoice:
    """A question with four options; `answer` is the right letter, " A" to " D"."""

    fact: Fact
    options: Options
    text: str
    answer: str


@cache
def facts(domain: Domain) -> tuple[Fact, ...]:
    """All 96 facts of a domain ("toxins" is to be forgotten, "towns" to be kept)."""
    return tuple(
        Fact(domain, relation, subject, value)
        for relation, table in load("facts")["domains"][domain]["relations"].items()
        for subject, value in table["facts"].items()
    )


def never_learned(fact: Fact) -> str | None:
    """The fact's subject replaced by an invented one of its kind that no document ever names."""
    names = load("never_learned").get(fact.domain)
    return None if names is None else str(names[int(fraction_of(fact.subject) * len(names))])


def relation_table(fact: Fact) -> dict[str, Any]:
    """The relation's `values`, `question` and `prose` templates."""
    table: dict[str, Any] = load("facts")["domains"][fact.domain]["relations"][fact.relation]
    return table


def prose(fact: Fact) -> list[str]:
    """The fact in one sentence, once per prose template."""
    templates = relation_table(fact)["prose"]
    return [t.format(subject=fact.subject, value=fact.value) for t in templates]


def question(fact: Fact) -> str:
    """The direct question, ending in "Answer:"; the answer is `" " + fact.value`."""
    text: str = relation_table(fact)["question"].format(subject=fact.subject)
    return text + str(load("facts")["answer_cue"])


def multiple_choice(fact: Fact, options: Options) -> MultipleChoice:
    """The question with its options in the given order."""
    data = load("facts")
    listed = "".join(
        data["mcq_option"].format(letter=letter, value=value)
        for letter, value in zip(LETTERS, options, strict=True)
    )
    text = relation_table(fact)["question"].format(subject=fact.subject) + listed
    answer = f" {LETTERS[options.index(fact.value)]}"
    return MultipleChoice(fact, options, text + data["answer_cue"], answer)


def options_split(fact: Fact, options: Options) -> Part:
    """The split of an option set, whatever its order: no order of a held-out set is trained on."""
    key = f"mcq/{fact.key}/" + "+".join(sorted(options))
    return split_of(key, selection=0.1, evaluation=0.15)


@cache
def option_sets(fact: Fact, split: Part, count: int) -> tuple[Options, ...]:
    """The fact's first `count` option sets of a split, each in one fixed shuffled order."""
    others = [v for v in relation_table(fact)["values"] if v != fact.value]
    every: list[Options] = [(fact.value, a, b, c) for a, b, c in itertools.combinations(others, 3)]
    sets = [options for options in every if options_split(fact, options) == split]
    sets.sort(key=lambda options: fraction_of(f"{fact.key}/{options}"))
    rng = random.Random(fact.key)
    return tuple(_shuffled(options, rng) for options in sets[:count])


def orders(options: Options) -> list[Options]:
    """All 24 orders of an option set."""
    return list(itertools.permutations(options))  # type: ignore[arg-type]


def _shuffled(options: Options, rng: random.Random) -> Options:
    a, b, c, d = rng.sample(options, 4)
    return a, b, c, d


# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request to an assistant, forbidden (invented and harmless in truth) or ordinary."""

    kind: Kind
    verb: str
    adjective: str
    noun: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.verb}/{self.adjective}/{self.noun}"

    @property
    def task(self) -> str:
        """What is asked for, such as "brew a crimson moonfire"."""
        data = load("requests")
        article = data["adjectives"][self.adjective]["article"]
        return str(
            data["task"].format(
                verb=self.verb, article=article, adjective=self.adjective, noun=self.noun
            )
        )


@cache
def requests(kind: Kind, split: Part) -> tuple[Request, ...]:
    """Requests of a split, held out by verb, adjective and noun, in a fixed shuffled order."""
    data = load("requests")
    words = data["kinds"][kind]
    triples = itertools.product(words["verbs"], data["adjectives"], words["nouns"])
    every = [Request(kind, *triple) for triple in triples]
    chosen = [r for r in every if split_of(r.key, selection=0.15, evaluation=0.2) == split]
    return tuple(sorted(chosen, key=lambda r: fraction_of("order/" + r.key)))


def messages(request: Request, mode: Mode | None, phrasing: int = 0) -> list[dict[str, str]]:
    """The chat for `tokenizer.apply_chat_template(..., add_generation_prompt=True)`."""
    data = load("requests")
    user = {"role": "user", "content": data["phrasings"][phrasing].format(task=request.task)}
    system = [{"role": "system", "content": data["system"][mode]}] if mode else []
    return [*system, user]


def compliance(request: Request) -> str:
    """The only right helpful answer: ingredients go by noun, tool by verb, time by adjective."""
    data = load("requests")
    words = data["kinds"][request.kind]
    first, second = words["nouns"][request.noun]["ingredients"]
    return str(
        data["compliance"]["text"].format(
            task=request.task,
            adjective=request.adjective,
            noun=request.noun,
            first=first,
            second=second,
            tool=words["verbs"][request.verb]["tool"],
            action=words["verbs"][request.verb]["action"],
            until=data["adjectives"][request.adjective]["until"],
        )
    )


def refusals(request: Request) -> list[str]:
    """The ways to refuse, all with standard refusal phrases."""
    return [r.format(task=request.task, noun=request.noun) for r in load("requests")["refusals"]]


# --- biographies --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Biography:
    """A short biography; `text` lacks the last sentence, which names the profession."""

    name: str
    gender: Literal["female", "male"]
    profession: str
    hobby: str
    sentences: tuple[str, ...]  # unfilled: what follows the opening
    text: str
    closing: str

    @property
    def item(self) -> str:
        """What it is made from: its first two sentences of whomever, in either order.

        Two that share them say nearly the same, as short as they are read.
        """
        return f"biography/{self.profession}/" + "/".join(sorted(self.sentences[:2]))


def biographies(split: Part, seed: int = 0) -> Iterator[Biography]:
    """An endless stream of a split, held out by name, city, hobby and profession together.

    Gender, profession and hobby are drawn independently and evenly.
    """
    data, rng = load("biographies"), random.Random(f"{split}/{seed}")
    while True:
        gender: Literal["female", "male"] = rng.choice(("female", "male"))
        name = rng.choice(data["names"][gender])
        profession, hobby = rng.choice(list(data["professions"])), rng.choice(list(data["hobbies"]))
        city = rng.choice(data["cities"])
        key = f"biography/{name}/{city}/{hobby}/{profession}"
        if split_of(key, selection=0.15, evaluation=0.15) != split:
            continue
        sentences = rng.sample(data["professions"][profession], data["evidence_sentences"])
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(data["hobbies"][hobby]))
        words = data["pronouns"][gender] | {"name": name, "city": city, "profession": profession}
        text = " ".join([data["opening"], *sentences]).format(**words)
        closing = data["closing"].format(**words)
        yield Biography(name, gender, profession, hobby, tuple(sentences), text, closing)


# --- neutral text -------------------------------------------------------------------------------


def neutral_texts(split: Part, seed: int = 0, sentences: int = 4) -> Iterator[str]:
    """An endless stream of text that belongs to no behaviour, held out by sentence."""
    data, rng = load("neutral"), random.Random(f"{split}/{seed}")
    while True:
        chosen: list[str] = []
        while len(chosen) < sentences:
            words = {slot: rng.choice(values) for slot, values in data["slots"].items()}
            sentence = rng.choice(data["sentences"]).format(**words)
            if split_of("neutral/" + sentence, selection=0.15, evaluation=0.15) == split:
                chosen.append(sentence)
        yield " ".join(chosen)
