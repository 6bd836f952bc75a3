"""What a prompt must be to be run: one BOS, no longer than the context, tokens with embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.examples import Example

# Position tables that are computed anew for the longest row of a batch, beyond a certain length.
BY_LONGEST_ROW = ("dynamic", "longrope")


def context(config: Any) -> int | None:
    """The longest row that has positions of its own; None where nothing says so.

    Dynamic and long RoPE give all rows of a batch other positions as soon as one of them is longer
    than the original context, so the original context is the limit.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") in BY_LONGEST_ROW:
            original = "original_max_position_embeddings"
            limits += [rope.get(original), getattr(config, original, None)]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    return min(known, default=None)


def _ropes(parameters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parameters, or those of each type of layer."""
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (rope for rope in parameters.values() if isinstance(rope, Mapping))


def check_bos(
    what: str, model: str, prompt: Sequence[int], token: int | None, *, wanted: bool
) -> None:
    """Hold a plain prompt to one BOS `token` at its start, or to none.

    Raises:
        UserError: it has another number.
    """
    found = bos_positions(prompt, token)
    if found != ([0] if wanted else []):
        rule = "exactly one BOS, at the start" if wanted else "no BOS"
        raise UserError(
            f"{what} has BOS at {found}, but {model} takes {rule}: leave it out of texts, and "
            "write none by hand"
        )


def bos_positions(prompt: Sequence[int], token: int | None) -> list[int]:
    return [i for i, other in enumerate(prompt) if other == token]


def marks_turns(prompt: Sequence[int], token: int | None) -> bool:
    """Whether BOS stands where a turn begins, as `<|im_start|>` does: inside, and never twice."""
    found = bos_positions(prompt, token)
    return any(found) and all(later > earlier + 1 for earlier, later in pairwise(found))


def check_length(what: str, model: str, length: int, limit: int | None) -> None:
    """Refuse a row of tokens that is longer than the context.

    Raises:
        UserError: it is.
    """
    if limit is not None and length > limit:
        raise UserError(
            f"{what} takes {length} tokens with its answer, but {model} has positions for {limit}; "
            "shorten or leave out such prompts, or ask for fewer new tokens"
        )


def check_tokens(what: str, model: str, example: Example, rows: int) -> None:
    """Refuse tokens that the embedding has no row for.

    Raises:
        UserError: there is one.
    """
    tokens = (*chain(example.prompt, *example.candidates, example.wrong or ()),)
    if tokens and not 0 <= min(tokens) <= max(tokens) < rows:
        outside = next(token for token in tokens if not 0 <= token < rows)
        raise UserError(
            f"{what} has the token {outside}, but the embedding of {model} has {rows} rows: the "
            "tokenizer does not belong to the model"
        )
