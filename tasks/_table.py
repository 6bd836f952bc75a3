"""The task that a task file describes: right against wrong answers, read from the next token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.base.task_file import Item, Table
from saebench_recovery.interfaces import Example, PluginConfig, Split, Task
from saebench_recovery.selection.latent_scores import activation_gradient
from saebench_recovery.targets.target import Target


class TableTask(Task):
    """Behaviour: the right answer's score exceeds every wrong one's at the prompt's end.

    Its score is a logit where all answers of a row are single tokens, and otherwise the mean
    log-probability.
    """

    table: ClassVar[Table]

    def __init__(self, config: PluginConfig | None = None) -> None:
        super().__init__(config)
        self._examples = cache(self._lay_out)

    def examples(self, target: Target, split: Split) -> Sequence[Example]:
        return self._examples(target, split)

    def attribution(self, target: Target, site: Site) -> Tensor:
        """Activation times gradient of the margin, on the selection split."""
        return activation_gradient(target, site, self.examples(target, "selection"), self.objective)

    def _lay_out(self, target: Target, split: Split) -> list[Example]:
        if split not in self.table.splits:
            return target.retained_examples()
        name = "retain" if split == "retain" else self.name
        return [self._example(target, name, item) for item in self.table.splits[split]]

    def _example(self, target: Target, name: str, item: Item) -> Example:
        made = target.example(
            f"{name}/{item.number}",
            item.prompt,
            [item.right, *item.wrong],
            wrong=item.injected,
            cluster=f"{name}/{item.cluster}",
        )
        if len(set(made.candidates)) < len(made.candidates):
            raise UserError(
                f"{self.title}, row {item.number}: two of its answers are the same tokens to "
                f"{target.name}; leave the row out"
            )
        return made


def task_of(table: Table, module: str) -> type[TableTask]:
    """The class of a table's task, as if it stood in a module of its own."""
    return type(
        "TableTask",
        (TableTask,),
        {
            "__module__": module,
            "__qualname__": "TableTask",
            "__doc__": table.description,
            "table": table,
            "data_files": table.files,
        },
    )
