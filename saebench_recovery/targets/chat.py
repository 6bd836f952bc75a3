"""A request as the model is asked it: in its own chat template, or in a plain stated form."""

from __future__ import annotations

from saebench_recovery.model.prompt_rules import marks_turns
from saebench_recovery.targets.target import Target

PLAIN = "User: {request}\nAssistant:"


def chat_prompt(target: Target, request: str, system: str | None = None) -> tuple[int, ...]:
    """Token ids up to where the answer begins.

    With one BOS where the target uses one, whether the template writes it or not. A template that
    marks turns by BOS is followed to the letter; so is one that reads the clock, at a fixed date
    (`rendering.TODAY`).

    Raises:
        UserError: the target has no chat template, its template fails, takes no system message or
            does not end, or there are two BOS in a row.
    """
    ids = target.chat_ids(request, system)
    if marks_turns(ids, target.tokenizer.bos_token_id):
        return ids
    return target.prompt(ids[1:] if ids[:1] == (target.tokenizer.bos_token_id,) else ids)


def plain_prompt(target: Target, request: str, system: str | None = None) -> tuple[int, ...]:
    """The same in a form that a model without a chat template can continue."""
    before = "" if system is None else f"{system}\n"
    return target.encode(before + PLAIN.format(request=request))
