"""What tokens say, and which tokens a text is: suffixes are searched as ids and scored as strings.

A suffix counts only if its text, tokenised inside the whole prompt, gives its tokens again: whoever
types the prompt cannot choose how it is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.model.examples import Example
from saebench_recovery.model.language_model import LanguageModel

ORDINARY = (" !", "!", " x", "x", " the")  # what a suffix begins as, if it is one token


class Vocabulary:
    """The tokens of a target, what each says, and which may stand in a suffix."""

    def __init__(self, target: LanguageModel) -> None:
        self.target = target
        rows: Tensor = target.embedding.weight
        size = min(rows.shape[0], len(target.tokenizer))
        # Behind another token: some decoders drop the space before a first word.
        anchor = target.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        ahead = len(self.decode(anchor))
        self.pieces = [self.decode([*anchor, token])[ahead:] for token in range(size)]
        plain = [_printing(p) and i not in target.special for i, p in enumerate(self.pieces)]
        self.allowed_V = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
        self.allowed_V[:size] = torch.tensor(plain, device=rows.device)
        self._separate: dict[int, bool] = {}  # by pair

    @property
    def ordinary(self) -> list[int]:
        """Tokens that a suffix can begin as, the best first.

        Raises:
            UserError: no token may stand in a suffix.
        """
        named = [self.target.single_token(text) for text in ORDINARY]
        found = [t for t in named if t is not None and self.allowed_V[t]]
        found += self.allowed_V.nonzero()[:, 0].tolist()
        if not found:
            raise UserError(f"{self.target.name} has no printing token: no suffix can be made")
        return found

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self.target.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of many texts at once; special tokens only where a text spells them."""
        if not texts:
            return []
        found = self.target.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False
        )
        return [tuple(ids) for ids in found["input_ids"]]

    def separate(self, left: Tensor, right: Tensor) -> Tensor:
        """Bool, as the two: neighbours that a tokenizer leaves alone when they stand by themselves.

        Cheap, because each pair is looked up once: most suffixes that it lets pass are stable.
        """
        size = self.allowed_V.numel()
        key, place = torch.unique(left * size + right, return_inverse=True)
        pairs = {k: divmod(k, size) for k in key.tolist()}
        new = {k: pair for k, pair in pairs.items() if k not in self._separate}
        encoded = self.encode(["".join(self._piece(t) for t in pair) for pair in new.values()])
        found = zip(new.items(), encoded, strict=True)
        self._separate |= {k: ids == pair for (k, pair), ids in found}
        return torch.tensor([self._separate[k] for k in pairs], device=left.device)[place]

    def _piece(self, token: int) -> str:
        return self.pieces[token] if token < len(self.pieces) else ""


@cache
def vocabulary(target: LanguageModel) -> Vocabulary:
    return Vocabulary(target)


class Gap:
    """A prompt with a place for a suffix, as a string."""

    def __init__(self, words: Vocabulary, example: Example, at: int) -> None:
        bos = words.target.bos
        self._words, self._skipped = words, int(bos is not None and example.prompt[0] == bos)
        self.head, self.tail = example.prompt[self._skipped : at], example.prompt[at:]
        self._before = words.decode(self.head)
        self._after = words.decode((*self.head, *self.tail))[len(self._before) :]
        if words.encode([self._before + self._after])[0] != (*self.head, *self.tail):
            raise UserError(
                f"the prompt of {example.id!r} does not survive decoding and tokenising again, so "
                "no string can be its suffix; try soft-suffix"
            )

    def text(self, suffix: Iterable[int]) -> str:
        """What a suffix's tokens say in this place."""
        return self._words.decode((*self.head, *suffix))[len(self._before) :]

    def whole(self, text: str) -> str:
        """The prompt with a suffix."""
        return self._before + text + self._after

    def suffix(self, ids: tuple[int, ...]) -> tuple[int, ...] | None:
        """The suffix's share of a whole prompt's ids; None if the prompt's own changed."""
        end = len(ids) - len(self.tail)
        kept = end >= len(self.head) and ids[: len(self.head)] == self.head
        return ids[len(self.head) : end] if kept and ids[end:] == self.tail else None

    @property
    def borders(self) -> tuple[int, int]:
        """The tokens on either side, -1 where there is none."""
        return self.head[-1] if self.head else -1, self.tail[0] if self.tail else -1


def retokenised(
    words: Vocabulary, gaps: Sequence[Gap], texts: Sequence[str]
) -> list[tuple[int, ...] | None]:
    """The suffix tokens that each text has inside its whole prompt; None if there are none."""
    whole = words.encode([gap.whole(text) for gap, text in zip(gaps, texts, strict=True)])
    return [gap.suffix(ids) for gap, ids in zip(gaps, whole, strict=True)]


def first_stable(
    words: Vocabulary, gaps: Sequence[Gap], ids_NTL: Tensor, usable_NT: Tensor
) -> Tensor:
    """Index [N] of the first usable suffix of each row whose text gives its tokens again, or -1.

    Few are tokenised: the next one of a row only if the one before it was not stable.
    """
    usable_NT = usable_NT.clone()
    chosen_N = torch.full_like(usable_NT[:, 0], -1, dtype=torch.long)
    pending = usable_NT.any(1).nonzero()[:, 0]
    while pending.numel():
        first = usable_NT[pending].int().argmax(1)
        here = [gaps[n] for n in pending.tolist()]
        wanted = [tuple(ids) for ids in ids_NTL[pending, first].tolist()]
        texts = [gap.text(ids) for gap, ids in zip(here, wanted, strict=True)]
        pairs = zip(retokenised(words, here, texts), wanted, strict=True)
        same = torch.tensor([found == ids for found, ids in pairs], device=pending.device)
        chosen_N[pending[same]] = first[same]
        usable_NT[pending, first] = False
        pending = pending[~same & usable_NT[pending].any(1)]
    return chosen_N


def stable_neighbours(words: Vocabulary, gaps: Sequence[Gap], ids_NTL: Tensor) -> Tensor:
    """Bool [N, T]: suffixes all of whose neighbours, the prompt's included, are `separate`."""
    border_N2 = torch.tensor([gap.borders for gap in gaps], device=ids_NTL.device)
    border_NT2 = border_N2[:, None].expand(-1, ids_NTL.shape[1], -1)
    row_NTK = torch.cat([border_NT2[..., :1], ids_NTL, border_NT2[..., 1:]], 2)
    left, right = row_NTK[..., :-1], row_NTK[..., 1:]
    inside = (left >= 0) & (right >= 0)
    separate = words.separate(left.clamp(min=0), right.clamp(min=0))
    return (separate | ~inside).all(2)


def _printing(piece: str) -> bool:
    return piece.isprintable() and bool(piece.strip()) and "\N{REPLACEMENT CHARACTER}" not in piece
