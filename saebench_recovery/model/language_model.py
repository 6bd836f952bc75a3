"""A causal language model as the engine runs it: one attention, one rule for BOS, few logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.model import attention
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.batch import batch as laid_out
from saebench_recovery.model.examples import Example
from saebench_recovery.model.hooks import blocks, home_of, start_block
from saebench_recovery.model.meter import count_product


@dataclass(frozen=True, eq=False)  # a model is only itself
class LanguageModel:
    """A frozen model and its tokenizer.

    The model may lie on several devices; all else is on `device`, that of its embedding.
    """

    name: str
    model: nn.Module
    tokenizer: Any

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        config: Any = self.model.config
        config._attn_implementation = attention.NAME
        self._check_head()

    @property
    def device(self) -> str:
        return str(home_of(self.model))

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that the model lies on."""
        return tuple(sorted({str(weight.device) for weight in self.model.parameters()}))

    @property
    def model_bytes(self) -> int:
        """Of all weights; tied ones count once."""
        return sum(weight.nbytes for weight in self.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def bos(self) -> int | None:
        """The token that every prompt begins with; None where there is none."""
        found: int | None = self.tokenizer.bos_token_id
        return found

    @property
    def embedding(self) -> Any:
        """The module that turns tokens into embeddings."""
        model: Any = self.model
        return model.get_input_embeddings()

    def depth(self, pool: Site | None = None) -> int:
        """Blocks that a pass runs: all of them, or those before a pooled site."""
        return len(blocks(self.model)) if pool is None else start_block(pool)

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a prompt; see `prompt`.

        Raises:
            UserError: the text itself contains a BOS.
        """
        return self.prompt(self._ids(text))

    def prompt(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A prompt of these tokens: behind one BOS where the target uses one, else without.

        Raises:
            UserError: there is a BOS among them already.
        """
        made = tuple(ids) if self.bos is None else (self.bos, *ids)
        self._check_bos("a prompt", made)
        return made

    def single_token(self, text: str) -> int | None:
        """The id of an answer that is one token, else None."""
        ids = self.answer(text)
        return ids[0] if len(ids) == 1 else None

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that goes on after another, with the space that it begins with.

        By itself it could get one more: some tokenizers put a space before every text.
        """
        if text not in self._answers:
            before, both = self._ids("\n"), self._ids(f"\n{text}")
            together = both[: len(before)] != before
            self._answers[text] = self._ids(text) if together else both[len(before) :]
        return self._answers[text]

    @cached_property
    def _answers(self) -> dict[str, tuple[int, ...]]:
        """Few texts answer many prompts, and tokenizing them took most of the time of a task."""
        return {}

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch(self, examples: Sequence[Example], first: Sequence[int] | None = None) -> Batch:
        """Examples laid out for the model, window i from position `first[i]` on (default: 0).

        Whatever the model is asked passes here, so no prompt has one BOS too many or too few.

        Raises:
            UserError: a prompt has.
        """
        for example in examples:
            self._check_bos(example.id or "a prompt", example.prompt)
        return laid_out(examples, first, self.device)

    def _check_bos(self, what: str, prompt: Sequence[int]) -> None:
        bos = self.tokenizer.bos_token_id  # a tokenizer looks it up anew each time
        found = [i for i, token in enumerate(prompt) if token == bos]
        if found != ([] if self.bos is None else [0]):
            wanted = "no BOS" if self.bos is None else "exactly one BOS, at the start"
            raise UserError(
                f"{what} has BOS at {found}, but {self.name} takes {wanted}: leave it out of "
                "texts, and write none by hand"
            )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits [N, V] of final-norm states, float32."""
        head = self._head
        there_ND = hidden_ND.to(head.weight.device)
        logits_NV = nn.functional.linear(there_ND, head.weight, head.bias)
        count_product(logits_NV, 2.0 * logits_NV.numel() * hidden_ND.shape[1])
        return self._capped(logits_NV.to(hidden_ND.device, torch.float32))

    def logits_of(self, hidden_ND: Tensor, ids_NC: Tensor) -> Tensor:
        """Some logits [N, C] only, float32: C rows of the unembedding instead of V."""
        weight_NCD, bias_NC = self._head_rows(ids_NC, hidden_ND)
        logits_NC = (weight_NCD @ hidden_ND.float()[:, :, None])[:, :, 0]
        return self._scored(logits_NC, bias_NC, hidden_ND)

    def logits_among(self, hidden_ND: Tensor, ids_C: Tensor) -> Tensor:
        """The logits [N, C] of the same tokens for every state, float32."""
        weight_CD, bias_C = self._head_rows(ids_C, hidden_ND)
        return self._scored(hidden_ND.float() @ weight_CD.T, bias_C, hidden_ND)

    def _head_rows(self, ids: Tensor, hidden_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of the unembedding, and their biases, where the states are."""

        def rows(weight: Tensor) -> Tensor:
            return weight[ids.to(weight.device)].to(hidden_ND.device, torch.float32)

        head = self._head
        return rows(head.weight), None if head.bias is None else rows(head.bias)

    def _scored(self, logits: Tensor, bias: Tensor | None, hidden_ND: Tensor) -> Tensor:
        count_product(logits, 2.0 * logits.numel() * hidden_ND.shape[1])
        return self._capped(logits if bias is None else logits + bias)

    @property
    def _head(self) -> Any:
        model: Any = self.model
        return model.get_output_embeddings()

    def _capped(self, logits: Tensor) -> Tensor:
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse an architecture whose logits are more than head and soft cap, and NaN."""
        ids = torch.tensor([[1, 2, 3]], device=self.device)
        whole = self.model(input_ids=ids, use_cache=False).logits[0].float()
        if not torch.isfinite(whole).all():
            raise UserError(f"{self.name} computes NaN or infinity: its weights are broken")
        model: Any = self.model
        hidden_ND = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = self.logits(hidden_ND.to(self.device))
        if (ours - whole).abs().max() > 1e-2 * whole.abs().max():
            raise UserError(f"{type(self.model).__name__} scales its logits in an unknown way")
