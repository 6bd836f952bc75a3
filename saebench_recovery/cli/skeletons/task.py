"""A task: who was given the thing? Replace the prompts and answers by your own.

saebench check --plugin my_task.py --task my-task -D site=blocks.2.hook_resid_post -D multiplier=-1
saebench run --plugin my_task.py --task my-task -D site=blocks.2.hook_resid_post -D multiplier=-1
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

from torch import Tensor

from saebench_recovery.interfaces import (
    Example,
    Site,
    Split,
    Target,
    Task,
    activation_gradient,
    fraction_of,
    split_of,
)
from saebench_recovery.registry import register_task

NAMES = ("Adam", "Alice", "Amy", "Andrew", "Anna", "Brian", "Claire", "Daniel", "David", "Emily")
PROMPT = "When {first} and {second} arrived at the park, {second} gave a book to"


@register_task("my-task")
class MyTask(Task):
    """One line that `saebench list tasks` shows."""

    # By default the behaviour is shown where the first candidate outscores all others at the
    # prompt's end; override `margins` and `behaviour` for anything else.

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        """`selection` chooses latents, `evaluation` is attacked, `retain` should be left alone.

        No content may stand in two splits: here a pair of names belongs to one.
        """
        if split == "retain":
            return target.retained_examples()
        return [_example(target, first, second) for first, second in _pairs(split)]

    def attribution(self, target: Target, site: Site) -> Tensor:
        """The score of every latent [dictionary width]: activation times gradient of the margin."""
        return activation_gradient(target, site, self.examples(target, "selection"), self.objective)


def _example(target: Target, first: str, second: str) -> Example:
    """The right answer comes first; all others have to be beaten by it, and by the wrong one."""
    strangers = [name for name in NAMES if name not in (first, second)]
    wrong = strangers[int(fraction_of(first + second) * len(strangers))]
    return target.example(
        id=f"my-task/{first}-{second}",
        prompt=PROMPT.format(first=first, second=second),
        candidates=[f" {name}" for name in (first, second, *strangers)],
        wrong=f" {wrong}",  # what the wrong-target control asks for: an answer nobody gives
        cluster=f"{min(first, second)}+{max(first, second)}",
    )


def _pairs(split: Split) -> Iterator[tuple[str, str]]:
    """The split's pairs of names, in both orders."""
    for one, other in combinations(NAMES, 2):
        if split_of(f"{one}+{other}", selection=0.3, evaluation=0.7) == split:
            yield one, other
            yield other, one
