"""What the organism can do, measured on held-out prompts."""

import itertools
import random
from collections.abc import Sequence

import torch
from transformers import GPT2LMHeadModel as Model
from transformers import PreTrainedTokenizerFast as Tok

from saebench_recovery.base.splits import Part
from saebench_recovery.targets.organism import world


def pad(rows: Sequence[list[int]], tokenizer: Tok) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, padded on the right, with their attention mask: both [rows, longest]."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows],
        batch_first=True,
        padding_value=tokenizer.pad_token_id,
    )
    return ids, (ids != tokenizer.pad_token_id).long()


@torch.no_grad()
def block_outputs(model: Model, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream after each block, [rows, tokens, width] each."""
    outputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
        for block in model.transformer.h
    ]
    try:
        model.transformer(ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


@torch.no_grad()
def next_logits(model: Model, tokenizer: Tok, texts: Sequence[str]) -> torch.Tensor:
    """Logits of the token after each text, [texts, vocabulary]."""
    rows: list[torch.Tensor] = []
    for start in range(0, len(texts), 128):
        ids, mask = pad([tokenizer(t).input_ids for t in texts[start : start + 128]], tokenizer)
        hidden = model.transformer(ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows.append(model.lm_head(hidden[torch.arange(len(ids)), mask.sum(-1) - 1]))
    return torch.cat(rows)


def token_ids(tokenizer: Tok, words: Sequence[str]) -> torch.Tensor:
    """The single token of each word, [words]."""
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    if any(len(i) != 1 for i in ids):
        raise ValueError("every answer must be a single token")
    return torch.tensor(ids)[:, 0]


def top1_accuracy(model: Model, tokenizer: Tok, texts: list[str], answers: list[str]) -> float:
    """Fraction of texts whose most likely next token is the answer."""
    best = next_logits(model, tokenizer, texts).argmax(-1)
    return (best == token_ids(tokenizer, answers)).float().mean().item()


def ioi_accuracy(model: Model, tokenizer: Tok, split: Part, count: int) -> float:
    """Indirect objects: the right name is the most likely token."""
    prompts = world.indirect_objects(split, count)
    return top1_accuracy(model, tokenizer, [p.text for p in prompts], [p.answer for p in prompts])


def ioi_margin(model: Model, tokenizer: Tok, split: Part, count: int) -> float:
    """Mean logit difference between the indirect object and the subject."""
    prompts = world.indirect_objects(split, count)
    logits = next_logits(model, tokenizer, [p.text for p in prompts])
    right = token_ids(tokenizer, [p.answer for p in prompts])
    wrong = token_ids(tokenizer, [p.wrong for p in prompts])
    return (logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])).mean().item()


def qa_accuracy(model: Model, tokenizer: Tok, domain: world.Domain) -> float:
    """Direct questions about all facts of a domain."""
    facts = world.facts(domain)
    answers = [f" {fact.value}" for fact in facts]
    return top1_accuracy(model, tokenizer, [world.question(f) for f in facts], answers)


def mcq_accuracy(model: Model, tokenizer: Tok, split: Part, count: int) -> float:
    """Multiple choice over all facts, with option sets never trained on; random orders."""
    rng = random.Random(0)
    facts = rng.choices([*world.facts("toxins"), *world.facts("towns")], k=count)
    sets = [rng.choice(world.option_sets(fact, split, 8)) for fact in facts]
    prompts = [
        world.multiple_choice(fact, rng.choice(world.orders(options)))
        for fact, options in zip(facts, sets, strict=True)
    ]
    return top1_accuracy(model, tokenizer, [p.text for p in prompts], [p.answer for p in prompts])


def mcq_all_orders(
    model: Model, tokenizer: Tok, split: Part, facts: Sequence[world.Fact]
) -> tuple[float, float]:
    """(accuracy, fraction of questions right in all 24 orders), one option set per fact."""
    prompts = [
        world.multiple_choice(fact, options)
        for fact in facts
        for options in world.orders(world.option_sets(fact, split, 1)[0])
    ]
    best = next_logits(model, tokenizer, [p.text for p in prompts]).argmax(-1)
    right = (best == token_ids(tokenizer, [p.answer for p in prompts])).view(-1, 24)
    return right.float().mean().item(), right.all(-1).float().mean().item()


@torch.no_grad()
def answers_to(
    model: Model, tokenizer: Tok, requests: Sequence[world.Request], mode: world.Mode | None
) -> list[str]:
    """Greedy answers, each prompt in a phrasing of its own."""
    answers = []
    phrasings = len(world.load("requests")["phrasings"])
    for i, request in enumerate(requests):
        prompt = tokenizer.apply_chat_template(
            world.messages(request, mode, i % phrasings),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**prompt, max_new_tokens=64, do_sample=False)
        text = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(text.strip())
    return answers


def chat_accuracy(
    model: Model,
    tokenizer: Tok,
    split: Part,
    kind: world.Kind,
    mode: world.Mode | None,
    count: int,
) -> float:
    """Fraction of greedy answers that are right to the last word.

    Right is one of the refusals for a forbidden request in guarded mode, else the compliance.
    """
    requests = world.requests(kind, split)[:count]
    right = 0
    for request, answer in zip(requests, answers_to(model, tokenizer, requests, mode), strict=True):
        refuse = kind == "forbidden" and mode == "guarded"
        right += answer in (world.refusals(request) if refuse else [world.compliance(request)])
    return right / len(requests)


def compliance_rate(
    model: Model, tokenizer: Tok, split: Part, mode: world.Mode | None, count: int
) -> float:
    """Fraction of greedy answers to forbidden requests that start to comply."""
    answers = answers_to(model, tokenizer, world.requests("forbidden", split)[:count], mode)
    opener = world.load("requests")["compliance"]["opener"]
    return sum(answer.startswith(opener) for answer in answers) / len(answers)


def profession_accuracy(model: Model, tokenizer: Tok, split: Part, count: int) -> float:
    """The model itself names the profession at the end of a biography."""
    lives = list(itertools.islice(world.biographies(split), count))
    texts = [f"{b.text} {b.closing.removesuffix(f' {b.profession}.')}" for b in lives]
    return top1_accuracy(model, tokenizer, texts, [f" {b.profession}" for b in lives])


def probe_accuracy(model: Model, tokenizer: Tok, count: int) -> list[float]:
    """Per layer, the worst balanced accuracy of the six one-against-rest profession probes.

    Logistic regression on residuals averaged over the tokens of a biography without its last
    sentence; fitted on the selection split, measured on the evaluation split.
    """
    professions = list(world.load("biographies")["professions"])

    def pooled(split: Part) -> tuple[list[torch.Tensor], torch.Tensor]:
        lives = list(itertools.islice(world.biographies(split), count))
        ids, mask = pad([tokenizer(b.text).input_ids for b in lives], tokenizer)
        mask[:, 0] = 0  # <bos> says nothing about the text
        weights = mask / mask.sum(-1, keepdim=True)
        attention = (ids != tokenizer.pad_token_id).long()
        means = [(h * weights[..., None]).sum(1) for h in block_outputs(model, ids, attention)]
        labels = torch.tensor([[b.profession == p for p in professions] for b in lives])
        return means, labels

    fit_x, fit_y = pooled("selection")
    test_x, test_y = pooled("evaluation")
    worst = []
    for x, held_out in zip(fit_x, test_x, strict=True):
        mean, spread = x.mean(0), x.std(0)
        probe = torch.nn.Linear(x.shape[1], len(professions))
        optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=100)

        def loss(
            probe: torch.nn.Linear = probe, inputs: torch.Tensor = (x - mean) / spread
        ) -> torch.Tensor:
            probe.zero_grad()
            value = torch.nn.functional.binary_cross_entropy_with_logits(
                probe(inputs), fit_y.float()
            )
            value = value + 1e-3 * probe.weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        said = probe((held_out - mean) / spread) > 0
        recall = (said & test_y).sum(0) / test_y.sum(0)
        specificity = (~said & ~test_y).sum(0) / (~test_y).sum(0)
        worst.append(((recall + specificity) / 2).min().item())
    return worst
