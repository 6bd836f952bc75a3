"""Greedy coordinate gradient the plain way: whole prompts, all logits, a tokenizer call each.

Proposals, their order and the choice among them are the engine's, so that both must find the same
suffix; only what a step computes is done as a plain implementation does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from saebench_recovery.attacks import gcg
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saebench_recovery.interfaces import Output, TokenSuffix
from saebench_recovery.model.adaptive_batches import AdaptiveBatches
from saebench_recovery.model.attention import FrozenPrefix
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.problem import Problem
from saebench_recovery.perturbations.suffix_tokens import SuffixTokens
from saebench_recovery.scoring.attack_and_score import posed
from saebench_recovery.scoring.setting import Setting
from tests.benchmarks.plain import PlainSearch
from tests.benchmarks.setting import Workload

LENGTH, STEPS, CANDIDATES = 8, 3, 32


class PlainPasses:
    """What the search asks of the engine, each pass from the tokens and to all logits."""

    def __init__(self, load: Workload) -> None:
        self._plain = PlainSearch(load)

    def proposed(
        self, problem: Problem, ids_NL: Tensor, count: int
    ) -> tuple[Tensor, Tensor, FrozenPrefix]:
        space, engine = SuffixTokens.of(problem), problem._engine
        embedding = self._plain.model.get_input_embeddings()
        at, length = int(space.layout.at_N[0]), space.length
        objective, best = [], []
        for ids_T in _whole(space, ids_NL[:, None])[:, 0]:
            one_hot_LV = torch.zeros(length, embedding.weight.shape[0])
            one_hot_LV[torch.arange(length), ids_T[at : at + length]] = 1
            one_hot_LV.requires_grad_()
            suffix_LD = one_hot_LV @ embedding.weight
            before, after = embedding(ids_T[:at]), embedding(ids_T[at + length :])
            embedded = torch.cat([before, suffix_LD, after])[None]
            objective_1 = self._margin(problem, inputs_embeds=embedded)
            (grad_LV,) = torch.autograd.grad(objective_1.sum(), one_hot_LV)
            allowed = grad_LV.masked_fill(~space.words.allowed_V, -torch.inf)
            best.append(allowed.topk(count).indices)
            objective.append(objective_1.detach())
        return torch.cat(objective), torch.stack(best), engine.start.prefix

    @torch.no_grad()
    def evaluated(
        self,
        problem: Problem,
        base_NL: Tensor,
        ids_NLBL: Tensor,
        tried_NLB: Tensor,
        recorded: FrozenPrefix,
        batches: AdaptiveBatches,
    ) -> Tensor:
        space = SuffixTokens.of(problem)
        tokenizer = space.words.target.tokenizer
        found = []
        for ids_BT in _whole(space, ids_NLBL.flatten(1, 2)):
            for ids_T in ids_BT.tolist():
                text = tokenizer.decode(ids_T)
                assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids_T
            found.append(self._margin(problem, input_ids=ids_BT))
        return torch.stack(found).view(ids_NLBL.shape[:-1])

    def _margin(self, problem: Problem, **inputs: Tensor) -> Tensor:
        with self._defended(problem):
            logits_BTV = self._plain.model(**inputs, use_cache=False).logits
        (answers,) = {example.candidates for example in problem.examples}
        scores_BC = logits_BTV[:, -1, [answer[0] for answer in answers]]
        return problem._engine.task.objective(Output((), scores_BC))

    @contextmanager
    def _defended(self, problem: Problem) -> Iterator[None]:
        plain, bare_D = self._plain, torch.zeros(problem._engine.width)

        def hook(_: Any, __: Any, resid_BTD: Tensor) -> Tensor:
            return plain.defended(resid_BTD, bare_D)

        handle = blocks(plain.model)[plain.site.layer].register_forward_hook(hook)
        yield
        handle.remove()


def _whole(space: SuffixTokens, ids_NBL: Tensor) -> Tensor:
    """The prompts [N, B, T] with their suffixes; all are equally long."""
    prompt_NT = torch.tensor([example.prompt for example in space.layout.plain])
    prompt_NBT = prompt_NT[:, None].expand(-1, ids_NBL.shape[1], -1)
    at = int(space.layout.at_N[0])
    return torch.cat([prompt_NBT[..., :at], ids_NBL, prompt_NBT[..., at:]], 2)


@contextmanager
def plainly(load: Workload) -> Iterator[None]:
    """Searches made inside run the model the plain way."""
    plain = PlainPasses(load)
    with (
        patch.object(gcg, "proposed", plain.proposed),
        patch.object(gcg, "evaluated", plain.evaluated),
    ):
        yield


def gcg_setting(load: Workload) -> Setting:
    """The workload's with gcg for its attack, a few steps that nothing ends early."""
    config = gcg.GreedyCoordinateGradient.Config(length=LENGTH, steps=STEPS, candidates=CANDIDATES)
    plain = load.setting.target
    target = replace(plain, tokenizer=words(plain.embedding.weight.shape[0]))
    return replace(load.setting, target=target, attack=gcg.GreedyCoordinateGradient(config))


def gcg_problem(load: Workload, rows: int) -> Problem:
    """A problem of as many rows (flips, and the same with a wrong answer)."""
    whole = posed(gcg_setting(load), load.flips[: (rows + 1) // 2], Meter())
    return whole.rows(torch.arange(rows))


def found(load: Workload, problem: Problem) -> TokenSuffix:
    with problem._engine.meter.counting():
        suffix = gcg_setting(load).attack.search(problem)
    assert isinstance(suffix, TokenSuffix)
    return suffix


def words(size: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer whose tokens are so many words."""
    names = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, size))]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
