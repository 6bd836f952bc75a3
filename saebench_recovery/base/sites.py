"""Hook points by their TransformerLens names, in the order in which a forward pass meets them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Annotated

from pydantic import AfterValidator

from saebench_recovery.base.errors import UserError

# Order inside one block. resid_post of a block is the same tensor as resid_pre of the next.
KINDS = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
_NAME = re.compile(r"blocks\.(\d+)\.(hook_\w+)")
# Module paths of a whole block name its output, the residual after the block.
_BLOCK = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(\d+)(?:\.output)?")


def hook_name(name: str) -> str:
    """A module path of a whole block as a hook name; any other name as it is."""
    block = _BLOCK.fullmatch(name)
    return f"blocks.{block[1]}.hook_resid_post" if block else name


@total_ordering
@dataclass(frozen=True)
class Site:
    """A hook point such as `blocks.5.hook_resid_post`."""

    layer: int
    kind: str

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read a hook name.

        Raises:
            UserError: the name is not one of the hook points that can be edited.
        """
        match = _NAME.fullmatch(name)
        if match is None or match.group(2) not in KINDS:
            raise UserError(
                f"unknown hook point {name!r}; allowed: blocks.<layer>.<{'|'.join(KINDS)}>"
            )
        return cls(int(match.group(1)), match.group(2))

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.kind}"

    def __lt__(self, other: Site) -> bool:
        return (self.layer, KINDS.index(self.kind)) < (other.layer, KINDS.index(other.kind))


def _spelled(name: str) -> str:
    return str(Site.parse(name))


SiteName = Annotated[str, AfterValidator(_spelled)]
"""The name of a hook point that can be edited."""
