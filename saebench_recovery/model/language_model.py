"""A causal language model as the engine runs it: one attention, one rule for BOS, few logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason
from saebench_recovery.base.sites import Site
from saebench_recovery.model import activations, attention, products
from saebench_recovery.model import prompt_rules as rules
from saebench_recovery.model.batch import Batch
from saebench_recovery.model.batch import batch as laid_out
from saebench_recovery.model.examples import Example
from saebench_recovery.model.freed_memory import keep_freed_memory
from saebench_recovery.model.hooks import blocks, home_of, start_block
from saebench_recovery.model.meter import count_product
from saebench_recovery.model.special_tokens import sink_ids, special_ids
from saebench_recovery.model.vocabulary_sample import VocabularySample

PART = 2048  # logits of each state that are computed at once


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
        blocks(self.model)  # refuses an architecture that keeps them elsewhere
        config: Any = self.model.config
        config._attn_implementation = attention.NAME
        activations.fuse(self.model)
        products.widen(self.model)
        keep_freed_memory()
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
        """A plain prompt of these tokens: behind one BOS where the target uses one, else without.

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
            UserError: a prompt has, is longer than the context, or holds a token without an
                embedding.
        """
        for example in examples:
            what = example.id or "a prompt"
            by_turns = rules.marks_turns(example.prompt, self._bos_token)
            if not (by_turns and self.bos_marks_turns):
                self._check_bos(what, example.prompt)
            self.check_fits(example)
        return laid_out(examples, first, self.device)

    @cached_property
    def bos_marks_turns(self) -> bool:
        """Whether prompts may have further BOS, which a chat template writes at each turn."""
        return False

    def check_fits(self, example: Example, new_tokens: int = 0) -> None:
        """Refuse a prompt that, with its answers or new tokens, the model has no place for.

        Raises:
            UserError: it is longer than the context, or a token has no row in the embedding.
        """
        what = example.id or "a prompt"
        longest = example.longest_answer
        further = max(new_tokens, longest if longest > 1 else 0)
        rules.check_length(what, self.name, len(example.prompt) + further, self._context)
        rules.check_tokens(what, self.name, example, self._embedded)

    @cached_property
    def _context(self) -> int | None:
        return rules.context(self.model.config)

    @cached_property
    def _embedded(self) -> int:
        """Tokens that the embedding has a row for."""
        rows: int = self.embedding.weight.shape[0]
        return rows

    def _check_bos(self, what: str, prompt: Sequence[int]) -> None:
        wanted = self.bos is not None
        rules.check_bos(what, self.name, prompt, self._bos_token, wanted=wanted)

    @cached_property
    def _bos_token(self) -> int | None:
        """Whether or not prompts begin with it; a tokenizer looks it up anew each time."""
        found: int | None = self.tokenizer.bos_token_id
        return found

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens that are no text: never in a suffix, never trained on."""
        return special_ids(self.tokenizer, self.model)

    @cached_property
    def sink_tokens(self) -> frozenset[int]:
        """Tokens that are sinks of attention wherever they stand; the first position always is."""
        return sink_ids(self.tokenizer)

    @cached_property
    def _sink_V(self) -> Tensor:
        sink_V = torch.zeros(self.embedding.weight.shape[0], dtype=torch.bool)
        sink_V[[token for token in self.sink_tokens if token < len(sink_V)]] = True
        return sink_V.to(self.device)

    def sinks(self, batch: Batch) -> Tensor:
        """Bool [R, Q]: the first position and sink tokens, whose activations are outliers."""
        return (batch.position_RQ == 0) | self._sink_V[batch.ids_RQ]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits [N, V] of final-norm states, float32."""
        return self._logits_in(hidden_ND, slice(None))

    def _logits_in(self, hidden_ND: Tensor, part: slice) -> Tensor:
        """The logits of a part of the vocabulary."""
        head = self._head
        there_ND, bias = hidden_ND.to(head.weight.device), head.bias
        logits_NV = products.linear(
            there_ND, head.weight[part], None if bias is None else bias[part]
        )
        count_product(logits_NV, 2.0 * logits_NV.numel() * hidden_ND.shape[1])
        return self._capped(logits_NV.to(hidden_ND.device, torch.float32))

    def logprobs_of(self, hidden_ND: Tensor, ids_N: Tensor) -> Tensor:
        """The log-probability [N] of one token for each state, float32."""
        return self.logits_of(hidden_ND, ids_N[:, None])[:, 0] - self.log_totals(hidden_ND)

    def log_totals(self, hidden_ND: Tensor, sample: VocabularySample | None = None) -> Tensor:
        """What a logit of each state exceeds its log-probability by [N], float32.

        On a CPU in parts of the vocabulary that its cache holds. About that, by a sample of it.
        """
        if sample is not None:
            return _log_sum(self.logits_among(hidden_ND, sample.ids_K) + sample.log_count_K)
        size = self._head.weight.shape[0]
        width = PART if hidden_ND.device.type == "cpu" else size
        # Each is summed before the next is made: all at once would be read from memory again.
        totals = [
            _log_sum(self._logits_in(hidden_ND, slice(start, start + width)))
            for start in range(0, size, width)
        ]
        return torch.stack(totals).logsumexp(0)

    def logits_of(self, hidden_ND: Tensor, ids_NC: Tensor) -> Tensor:
        """Some logits [N, C] only, float32: C rows of the unembedding instead of V."""
        weight_NCD, bias_NC = self._head_rows(ids_NC, hidden_ND)
        logits_NC = (weight_NCD @ hidden_ND.float()[:, :, None])[:, :, 0]
        return self._scored(logits_NC, bias_NC, hidden_ND)

    def logits_among(self, hidden_ND: Tensor, ids_C: Tensor) -> Tensor:
        """The logits [N, C] of the same tokens for every state, float32."""
        weight_CD, bias_C = self._head_rows(ids_C, hidden_ND)
        logits_NC = products.linear(hidden_ND.float(), weight_CD, None)
        return self._scored(logits_NC, bias_C, hidden_ND)

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
        config: Any = self.model.config
        factor = getattr(config, "logit_scale", None) or 1.0  # Cohere's
        divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite's
        if factor != divisor:
            logits = logits * (factor / divisor)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse an architecture whose logits are more than head, factor and soft cap, and NaN."""
        ids = torch.tensor([[1, 2, 3]], device=self.device)
        model: Any = self.model
        try:
            whole = model(input_ids=ids, use_cache=False).logits[0].float()
            hidden_ND = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = self.logits(hidden_ND.to(self.device))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture raises that is run in another way
            raise refusal(model, error) from error
        if not torch.isfinite(whole).all():
            raise UserError(f"{self.name} computes NaN or infinity: its weights are broken")
        if ours.shape != whole.shape or (ours - whole).abs().max() > 1e-2 * whole.abs().max():
            raise UserError(f"{type(self.model).__name__} scales its logits in an unknown way")


def _log_sum(logits_NV: Tensor) -> Tensor:
    """The log-sum-exp [N] of logits that nobody reads afterwards.

    By way of PyTorch's log-softmax, which takes a third of its time and, in place, no memory.
    """
    first_N = logits_NV[:, 0].clone()
    place = None if logits_NV.requires_grad else logits_NV
    return first_N - torch.log_softmax(logits_NV, -1, out=place)[:, 0]


def refusal(model: nn.Module, error: Exception) -> UserError:
    """The line that names an architecture which cannot be run, from what it raised."""
    name = type(model).__name__
    if isinstance(error, UserError):
        return UserError(f"{name}: {error}")
    return UserError(
        f"{name} cannot be run here: its attention or cache is of another kind "
        f"({type(error).__name__}: {reason(error)}); docs/architectures.md lists what can"
    )
