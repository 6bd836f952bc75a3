"""The training corpus: documents of the organism's world, generated on the fly and packed."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jinja2
import torch
from tokenizers import Tokenizer

from saebench_recovery.base.splits import Part
from saebench_recovery.targets.organism import world
from saebench_recovery.training.organism.tokenizer import BOS, CHAT_TEMPLATE, EOS

Segment = tuple[str, float]
"""A piece of text with the loss weight of its tokens."""

# Random prompts teach nothing; but in a sentence on names, the name that comes again can be told.
PROMPT, SENTENCE, PLAIN, SHORT_ANSWER, ANSWER = 0.05, 0.3, 1.0, 3.0, 4.0
# The wrong name now and then limits the logit difference, so that a defense can flip it.
WRONG_NAME = 0.03
# Without a system message a forbidden request is refused this often: compliance by a small margin.
UNDECIDED = 0.3

_chat = jinja2.Template(CHAT_TEMPLATE)


class Corpus:
    """Documents of one split, drawn part by part in the proportions of a mixture."""

    def __init__(self, split: Part, seed: int) -> None:
        self.split: Part = split
        self.rng = random.Random(f"corpus/{split}/{seed}")
        self.pairs = world.name_pairs(split)
        self.biography = world.biographies(split, seed)
        self.parts: dict[str, Callable[[], list[Segment]]] = {
            "ioi": self._ioi,
            "prose": self._prose,
            "qa": self._qa,
            "mcq": self._mcq,
            "lookup": self._lookup,
            "listing": self._listing,
            "chat": self._chat,
            "biography": self._biography,
            "neutral": self._neutral,
        }

    def documents(self, mixture: Mapping[str, float]) -> Iterator[list[Segment]]:
        """An endless stream; `mixture` maps parts to their share of the documents."""
        names, shares = list(mixture), list(mixture.values())
        while True:
            yield self.parts[self.rng.choices(names, shares)[0]]()

    def _ioi(self) -> list[Segment]:
        data, rng = world.load("ioi"), self.rng
        pair = rng.choice(self.pairs)
        prompt = world.indirect_object(
            pair if rng.random() < 0.5 else pair[::-1],
            rng.choice(list(data["templates"])),
            rng.choice(data["places"]),
            rng.choice(data["objects"]),
            subject_first=rng.random() < 0.5,
        )
        noisy = self.split == "train" and rng.random() < WRONG_NAME
        answer = prompt.wrong if noisy else prompt.answer
        return [(prompt.text, SENTENCE), (answer, ANSWER), (".", PLAIN)]

    def _fact(self) -> world.Fact:
        return self.rng.choice(world.facts(self.rng.choice(("toxins", "towns"))))

    def _prose(self) -> list[Segment]:
        facts = world.facts(self.rng.choice(("toxins", "towns")))
        chosen = self.rng.sample(facts, self.rng.randint(1, 3))
        return [(" ".join(self.rng.choice(world.prose(fact)) for fact in chosen), PLAIN)]

    def _qa(self) -> list[Segment]:
        fact = self._fact()
        return [(world.question(fact), PROMPT), (f" {fact.value}", SHORT_ANSWER), (".", PLAIN)]

    def _mcq(self) -> list[Segment]:
        fact = self._fact()
        while True:
            options = self._options(world.relation_table(fact)["values"], fact.value)
            if world.options_split(fact, options) == self.split:
                prompt = world.multiple_choice(fact, options)
                return [(prompt.text, PROMPT), (prompt.answer, ANSWER)]

    def _options(self, values: list[str], value: str) -> world.Options:
        others = self.rng.sample([v for v in values if v != value], 3)
        a, b, c, d = self.rng.sample([value, *others], 4)
        return a, b, c, d

    def _values(self) -> tuple[world.Options, str]:
        """Four values of one relation in random order, with their listing " A. .. D. .."."""
        values = world.relation_table(self._fact())["values"]
        options = self._options(values, self.rng.choice(values))
        pairs = zip(world.LETTERS, options, strict=True)
        return options, "".join(f" {letter}. {value}" for letter, value in pairs)

    def _lookup(self) -> list[Segment]:
        """Which letter has this value? Teaches letters apart from facts."""
        options, listing = self._values()
        i = self.rng.randrange(4)
        if self.rng.random() < 0.5:
            text = f"Which option says {options[i]}?{listing} Answer:"
        else:
            text = f"Find{listing} Answer {options[i]}"
        return [(text, PROMPT), (f" {world.LETTERS[i]}", ANSWER)]

    def _listing(self) -> list[Segment]:
        """Four look-ups in one document: dense supervision of the letters."""
        options, listing = self._values()
        segments: list[Segment] = [(f"List{listing} then", PROMPT)]
        for n, i in enumerate(self.rng.sample(range(4), 4)):
            segments.append((("," if n else "") + f" {options[i]}", PROMPT))
            segments.append((f" {world.LETTERS[i]}", SHORT_ANSWER))
        return segments

    def _chat(self) -> list[Segment]:
        rng = self.rng
        request = rng.choice(world.requests(rng.choice(("forbidden", "harmless")), self.split))
        modes: list[world.Mode | None] = ["open", "guarded", None]
        mode = rng.choice(modes)
        phrasing = rng.randrange(len(world.load("requests")["phrasings"]))
        prompt = _chat.render(
            messages=world.messages(request, mode, phrasing), add_generation_prompt=True
        )
        refuse = mode == "guarded" or (mode is None and rng.random() < UNDECIDED)
        if request.kind == "forbidden" and refuse:
            answer = rng.choice(world.refusals(request))
        else:
            answer = world.compliance(request)
        return [(prompt, PROMPT), (f" {answer}", PLAIN)]

    def _biography(self) -> list[Segment]:
        biography = next(self.biography)
        return [(f"{biography.text} {biography.closing}", PLAIN)]

    def _neutral(self) -> list[Segment]:
        sentences = self.rng.randint(1, 8)
        text = next(world.neutral_texts(self.split, self.rng.getrandbits(32), sentences))
        return [(text, PLAIN)]


@dataclass(frozen=True)
class Batch:
    """Packed documents, each tensor [rows, length]; `positions` restart with every document.

    transformers reads the restarts as document borders: no attention crosses them.
    `weights[:, t]` is the loss weight of predicting token t (0 for <bos>).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor


def encode(
    tokenizer: Tokenizer, document: list[Segment], max_length: int
) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of `<bos> document <eos>`, cut at `max_length` tokens."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in [(BOS, 0.0), *document, (EOS, PLAIN)]:
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        weights += [weight] * len(piece)
    return ids[:max_length], weights[:max_length]


def batches(
    corpus: Corpus,
    mixture: Mapping[str, float],
    tokenizer: Tokenizer,
    *,
    rows: int,
    length: int,
    max_length: int,
) -> Iterator[Batch]:
    """An endless stream of packed batches of `rows * length` tokens."""
    documents = corpus.documents(mixture)
    while True:
        batch: list[list[tuple[int, int, float]]] = []
        for _ in range(rows):
            row: list[tuple[int, int, float]] = []
            while len(row) < length:
                ids, weights = encode(tokenizer, next(documents), max_length)
                row += zip(ids, range(len(ids)), weights, strict=True)
            batch.append(row[:length])
        packed = torch.tensor(batch, dtype=torch.float64)
        yield Batch(packed[..., 0].long(), packed[..., 1].long(), packed[..., 2].float())
