"""A request as the model is asked it: in its own chat template, or in a plain stated form."""

from __future__ import annotations

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason
from saebench_recovery.targets.rendering import rendered
from saebench_recovery.targets.target import Target

PLAIN = "User: {request}\nAssistant:"


def chat_prompt(target: Target, request: str, system: str | None = None) -> tuple[int, ...]:
    """Token ids up to where the answer begins, with one BOS where the target uses one.

    Whether the template writes a BOS too makes no difference.

    Raises:
        UserError: the target has no chat template, its template fails, takes no system message or
            does not end, or there is a further BOS.
    """
    tokenizer = target.tokenizer
    if not tokenizer.chat_template:
        raise UserError(f"{target.name} has no chat template; use -T format=plain")
    messages = [{"role": "user", "content": request}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        template = tokenizer.get_chat_template()
        text = rendered(template, messages, tokenizer.special_tokens_map)
    except (UserError, ValueError) as error:
        raise UserError(f"the chat template of {target.name} fails: {reason(error)}") from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return target.prompt(ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids)


def plain_prompt(target: Target, request: str, system: str | None = None) -> tuple[int, ...]:
    """The same in a form that a model without a chat template can continue."""
    before = "" if system is None else f"{system}\n"
    return target.encode(before + PLAIN.format(request=request))
