"""Rule 6: what a task's splits hold is told apart by content, and copies count once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from scipy import sparse
from scipy.sparse import csgraph

from saebench_recovery.interfaces import Example, Split, Task
from saebench_recovery.schema import Finding
from saebench_recovery.schema.finding import Level
from saebench_recovery.scoring.check.catalogue import finding
from saebench_recovery.scoring.check.near_duplicates import groups, normalised
from saebench_recovery.targets.target import Target

FEW_SHARED = 0.05  # of a split's prompts; more would show in a rate
FEW_LEFT = 0.5  # of the source items, once copies are counted once

Splits = Mapping[Split, Sequence[Example]]


def check_examples(target: Target, task: Task, found: Splits) -> Iterator[Finding]:
    """What is wrong with the examples; looks at no output."""
    ids = Counter(example.id for example in found["evaluation"])
    repeated = [id for id, count in ids.items() if count > 1]
    if repeated:
        words = f"{task.title} has {len(repeated)} evaluation ids more than once"
        yield finding("ids-not-unique", f"{words}, such as {repeated[0]!r}")
    if not found["retain"]:
        yield finding("no-retain-examples", f"{task.title} has no retain examples")
    alone = sum(len(set(example.candidates)) < 2 for example in found["retain"])
    if 2 * alone > len(found["retain"]):
        words = f"{task.title} has {alone} retain examples with one candidate"
        yield finding("no-retain-examples", f"{words}, which nothing can break")
    content = _contents(target, found)
    for one, other in combinations(found, 2):
        yield from _overlap(task, one, other, found, content)
    examples, joined = found["evaluation"], _joined(found["evaluation"], content["evaluation"])
    if joined != list(examples):
        before, after = (len({e.cluster or e.id for e in es}) for es in (examples, joined))
        words = f"{task.title} asks nearly the same under several ids, {before} items are {after}"
        level: Level | None = "invalid" if after < FEW_LEFT * before else None
        yield finding("duplicate-examples", f"{words}; such examples share a cluster", level)


def clustered(target: Target, examples: Sequence[Example]) -> list[Example]:
    """The examples, those whose prompts say the same in one cluster."""
    return _joined(examples, groups(_texts(target, examples)))


def _joined(examples: Sequence[Example], said: Sequence[int]) -> list[Example]:
    names = [example.cluster or example.id for example in examples]
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    # Source items and contents are the two sides of a graph; what hangs together is one item.
    pairs = ([place[name] for name in names], [len(place) + group for group in said])
    size = len(place) + max(said, default=-1) + 1
    graph = sparse.csr_matrix(([True] * len(said), pairs), shape=(size, size))
    _, component = csgraph.connected_components(graph, directed=False)
    first: dict[int, str] = {}
    for name, i in place.items():
        first.setdefault(component[i], name)
    joined = Counter(component[i] for i in place.values())
    items = [component[place[name]] for name in names]
    return [
        replace(example, cluster=first[item]) if joined[item] > 1 else example
        for example, item in zip(examples, items, strict=True)
    ]


def _overlap(
    task: Task,
    one: Split,
    other: Split,
    found: Splits,
    content: Mapping[Split, Sequence[int]],
) -> Iterator[Finding]:
    where = {group: i for i, group in enumerate(content[one])}
    again = [i for i, group in enumerate(content[other]) if group in where]
    kind, pairs = "content", [(where[content[other][i]], i) for i in again]
    if not pairs:
        items = {example.cluster: i for i, example in enumerate(found[one]) if example.cluster}
        clusters = [example.cluster for example in found[other]]
        kind = "source item"
        pairs = [(items[name], i) for i, name in enumerate(clusters) if name in items]
    if pairs:
        a, b = pairs[0]
        words = f"{len(pairs)} of {len(found[other])} prompts of {other} have the {kind} of one of"
        such = f"such as {found[other][b].id!r} and {found[one][a].id!r}"
        level: Level = "invalid" if len(pairs) > FEW_SHARED * len(found[other]) else "caution"
        yield finding("splits-overlap", f"{task.title}: {words} {one}, {such}", level)


def _contents(target: Target, found: Splits) -> dict[Split, list[int]]:
    """Per split, a number for what each example says."""
    texts = {split: _texts(target, examples) for split, examples in found.items()}
    numbers = iter(groups([text for each in texts.values() for text in each]))
    return {split: [next(numbers) for _ in each] for split, each in texts.items()}


def _texts(target: Target, examples: Sequence[Example]) -> list[str]:
    decode = target.tokenizer.decode
    return [normalised(decode(e.prompt, skip_special_tokens=True)) for e in examples]
