"""Greedy coordinate gradient the plain way: whole prompts, all logits, a tokenizer call each.

Proposals, their order and the choice among them are the engine's, so that both must find the same
suffix; only what a step computes is done as a plain implementation does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from saebench_recovery.attacks.gcg import GreedyCoordinateGradient
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saebench_recovery.interfaces import Output, TokenSuffix
from saebench_recovery.model.adaptive_batches import Pieces
from saebench_recovery.model.attention import FrozenPrefix
from saebench_recovery.model.hooks import blocks
from saebench_recovery.model.meter import Meter
from saebench_recovery.perturbations.suffix import SuffixProblem
from saebench_recovery.scoring.attack_and_score import Setting, pose
from tests.benchmarks.plain import PlainSearch
from tests.benchmarks.setting import Workload

LENGTH, STEPS, CANDIDATES = 8, 3, 32


@dataclass(frozen=True, kw_only=True)
class PlainSuffixProblem(SuffixProblem):
    """The same problem, each pass of which starts from the tokens and ends in all logits."""

    plainly: PlainSearch

    def promising(self, ids_NL: Tensor, count: int) -> tuple[Tensor, Tensor, FrozenPrefix]:
        embedding = self.plainly.model.get_input_embeddings()
        whole_NT = self._whole(ids_NL[:, None])[:, 0]
        at = int(self.at_N[0])
        objective, best = [], []
        for ids_T in whole_NT:
            one_hot_LV = torch.zeros(self.length, embedding.weight.shape[0])
            one_hot_LV[torch.arange(self.length), ids_T[at : at + self.length]] = 1
            one_hot_LV.requires_grad_()
            suffix_LD = one_hot_LV @ embedding.weight
            before, after = embedding(ids_T[:at]), embedding(ids_T[at + self.length :])
            objective_1 = self._margin(inputs_embeds=torch.cat([before, suffix_LD, after])[None])
            (grad_LV,) = torch.autograd.grad(objective_1.sum(), one_hot_LV)
            allowed = grad_LV.masked_fill(~self.words.allowed_V, -torch.inf)
            best.append(allowed.topk(count).indices)
            objective.append(objective_1.detach())
        return torch.cat(objective), torch.stack(best), self.start.prefix

    @torch.no_grad()
    def candidates(
        self, ids_NBL: Tensor, first: int, heard: FrozenPrefix, pieces: Pieces
    ) -> Tensor:
        tokenizer = self.active.target.tokenizer
        found = []
        for ids_BT in self._whole(ids_NBL):
            for ids_T in ids_BT.tolist():
                text = tokenizer.decode(ids_T)
                assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids_T
            found.append(self._margin(input_ids=ids_BT))
        return torch.stack(found)

    def _whole(self, ids_NBL: Tensor) -> Tensor:
        """The prompts [N, B, T] with their suffixes; all are equally long."""
        prompt_NT = torch.tensor([example.prompt for example in self.plain])
        prompt_NBT = prompt_NT[:, None].expand(-1, ids_NBL.shape[1], -1)
        at = int(self.at_N[0])
        return torch.cat([prompt_NBT[..., :at], ids_NBL, prompt_NBT[..., at:]], 2)

    def _margin(self, **inputs: Tensor) -> Tensor:
        with self._defended():
            logits_BTV = self.plainly.model(**inputs, use_cache=False).logits
        (answers,) = {example.candidates for example in self.plain}
        scores_BC = logits_BTV[:, -1, [answer[0] for answer in answers]]
        return self.task.objective(Output((), scores_BC))

    @contextmanager
    def _defended(self) -> Iterator[None]:
        plainly, bare_D = self.plainly, torch.zeros(self.start.resid_RQD.shape[2])

        def hook(_: Any, __: Any, resid_BTD: Tensor) -> Tensor:
            return plainly.defended(resid_BTD, bare_D)

        handle = blocks(plainly.model)[plainly.site.layer].register_forward_hook(hook)
        yield
        handle.remove()


def gcg_setting(load: Workload) -> Setting:
    """The workload's with gcg for its attack, a few steps that nothing ends early."""
    config = GreedyCoordinateGradient.Config(length=LENGTH, steps=STEPS, candidates=CANDIDATES)
    target = replace(
        load.setting.active.target,
        tokenizer=words(load.setting.active.target.embedding.weight.shape[0]),
    )
    return replace(
        load.setting,
        active=replace(load.setting.active, target=target),
        attack=GreedyCoordinateGradient(config),
        budgets=(load.setting.headline,),
    )


def both(load: Workload, rows: int) -> tuple[SuffixProblem, PlainSuffixProblem]:
    """One problem for either way, of as many rows (flips, and the same with a wrong answer)."""
    posed = pose(gcg_setting(load), load.flips[: (rows + 1) // 2], Meter())
    assert isinstance(posed, SuffixProblem)
    engine = posed.rows(torch.arange(rows))
    held = {field.name: getattr(engine, field.name) for field in fields(engine)}
    return engine, PlainSuffixProblem(**held, plainly=PlainSearch(load))


def found(load: Workload, problem: SuffixProblem) -> TokenSuffix:
    attack = gcg_setting(load).attack
    assert isinstance(attack, GreedyCoordinateGradient)
    return attack.search(problem)


def words(size: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer whose tokens are so many words."""
    names = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, size))]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
