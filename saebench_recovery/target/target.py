"""A causal language model with its SAEs, as tasks, defenses and attacks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saebench_recovery.errors import UserError
from saebench_recovery.interfaces import Example
from saebench_recovery.sites import Site
from saebench_recovery.target import attention
from saebench_recovery.target.batch import Batch
from saebench_recovery.target.batch import batch as laid_out
from saebench_recovery.target.hooks import blocks, home_of, start_block
from saebench_recovery.target.latents import Dictionary
from saebench_recovery.target.presets import Preset


@dataclass(frozen=True, eq=False)  # a target is only itself
class Target:
    """A frozen model, its tokenizer and the dictionaries at its hook points.

    The model may lie on several devices; all else is on `device`, that of its embedding.
    `neutral` is text, and `retained` are prompts with answers, that belong to no task: what a
    defense does to them is a side effect. `commits` are those of the hub's repositories that
    something has been read from so far.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    dictionaries: Mapping[Site, Dictionary]
    preset: Preset
    neutral: Sequence[str]
    retained: Sequence[tuple[str, str, tuple[str, ...]]]
    commits: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        config: Any = self.model.config
        config._attn_implementation = attention.NAME
        for site in self.dictionaries:
            if site.layer >= len(blocks(self.model)):
                raise UserError(
                    f"SAE at {site}, but {self.name} has {len(blocks(self.model))} blocks"
                )
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
        found: int | None = self.tokenizer.bos_token_id
        return found if self.preset.bos else None

    @property
    def embedding(self) -> Any:
        """The module that turns tokens into embeddings."""
        model: Any = self.model
        return model.get_input_embeddings()

    def depth(self, pool: Site | None = None) -> int:
        """Blocks that a pass runs: all of them, or those before a pooled site."""
        return len(blocks(self.model)) if pool is None else start_block(pool)

    def site_for(self, task: str, wanted: str | None) -> Site:
        """The hook point to defend: the wanted one, or the target's own for the task.

        Raises:
            UserError: the target has no SAE there.
        """
        site = Site.parse(wanted or self.preset.tasks[task].site)
        self.dictionary(site)
        return site

    def dictionary(self, site: Site) -> Dictionary:
        """The SAE at a site.

        Raises:
            UserError: there is none, or it was trained for a model of another width.
        """
        if site not in self.dictionaries:
            known = ", ".join(str(s) for s in sorted(self.dictionaries))
            raise UserError(f"{self.name} has no SAE at {site}; it has: {known}")
        config: Any = self.model.config
        found = self.dictionaries[site]
        if found.d_model != config.hidden_size:
            raise UserError(
                f"the SAE at {site} reads {found.d_model} dimensions, but {self.name} has "
                f"{config.hidden_size}: it was trained for another model"
            )
        return found

    def sites_after(self, site: Site, last: Site | None = None) -> list[Site]:
        """Later hook points that have an SAE, in their order, up to the last that is read."""
        later = sorted(other for other in self.dictionaries if other > site)
        return [other for other in later if last is None or other <= last]

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
        found = [i for i, token in enumerate(prompt) if token == self.tokenizer.bos_token_id]
        if found != ([] if self.bos is None else [0]):
            wanted = "no BOS" if self.bos is None else "exactly one BOS, at the start"
            raise UserError(
                f"{what} has BOS at {found}, but {self.name} takes {wanted}: leave it out of "
                "texts, and write none by hand"
            )

    def single_token(self, text: str) -> int | None:
        """The id of an answer that is one token, else None."""
        ids = self._answer(text)
        return ids[0] if len(ids) == 1 else None

    def example(
        self,
        id: str,
        prompt: str,
        candidates: Sequence[str],
        *,
        wrong: str | None = None,
        cluster: str = "",
    ) -> Example:
        """An example from texts; answers carry their leading space."""
        ids = tuple(self._answer(text) for text in candidates)
        unwanted = None if wrong is None else self._answer(wrong)
        return Example(id, self.encode(prompt), ids, unwanted, cluster or id)

    def retained_examples(self) -> list[Example]:
        """Questions about facts that no task removes, each with its answer first."""
        return [
            self.example(f"retain/{i}", prompt, [answer, *others])
            for i, (prompt, answer, others) in enumerate(self.retained)
        ]

    def _answer(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that goes on after another, with the space that it begins with.

        By itself it could get one more: some tokenizers put a space before every text.
        """
        before, both = self._ids("\n"), self._ids(f"\n{text}")
        together = both[: len(before)] != before
        return self._ids(text) if together else both[len(before) :]

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """All logits [N, V] of final-norm states, float32."""
        head = self._head
        there_ND = hidden_ND.to(head.weight.device)
        logits_NV = nn.functional.linear(there_ND, head.weight, head.bias)
        return self._capped(logits_NV.to(hidden_ND.device, torch.float32))

    def logits_of(self, hidden_ND: Tensor, ids_NC: Tensor) -> Tensor:
        """Some logits [N, C] only, float32: C rows of the unembedding instead of V."""
        head = self._head

        def rows(weight: Tensor) -> Tensor:
            return weight[ids_NC.to(weight.device)].to(hidden_ND.device, torch.float32)

        logits_NC = (rows(head.weight) @ hidden_ND.float()[:, :, None])[:, :, 0]
        return self._capped(logits_NC if head.bias is None else logits_NC + rows(head.bias))

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
