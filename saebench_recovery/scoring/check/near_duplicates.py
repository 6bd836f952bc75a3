"""Which texts say the same: equal once normalised, or with nearly all of their rare shingles.

A shingle is a run of characters, and the similarity of two texts the share of their shingles that
both have (Jaccard index). It must be high among all shingles, and among those that are rare in all
texts, weighed by how rare they are (inverse document frequency): prompts of one template are alike
only if they also share what is put into it. A sparse matrix product finds the pairs.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

SHINGLE = 6  # characters
SIMILAR = 0.75
COMMON = 0.1  # a shingle in more than this share of texts says nothing, unless there are few texts
FEW_TEXTS = 20


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation and no accents."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", kept)) or " ".join(text.split())


def groups(texts: Sequence[str]) -> list[int]:
    """A number for each text, the same for those that say the same; texts are normalised."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    _, group = csgraph.connected_components(_near(list(place)), directed=False)
    return [int(group[place[text]]) for text in texts]


def _near(texts: Sequence[str]) -> sparse.csr_matrix:
    """Which of some different texts are near each other, [texts, texts]."""
    each = [_shingles(text) for text in texts]
    counts = Counter(shingle for shingles in each for shingle in shingles)
    most = max(FEW_TEXTS, COMMON * len(texts))
    kept = [shingle for shingle, count in counts.items() if count <= most]
    column = {shingle: i for i, shingle in enumerate(kept)}
    holding = [(row, column[s]) for row, found in enumerate(each) for s in found if s in column]
    rows, columns = np.array(holding, dtype=int).reshape(-1, 2).T
    shape = (len(texts), max(1, len(column)))
    holds = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
    weight = np.log1p(len(texts) / np.array([counts[s] for s in kept] or [1]))
    weighed = holds.multiply(weight[None]).tocsr()
    total = np.asarray(weighed.sum(1)).ravel()
    shared = (weighed @ holds.T).tocoo()
    union = total[shared.row] + total[shared.col] - shared.data
    rarely = (shared.data >= SIMILAR * union) & (shared.row < shared.col)
    near = [
        (a, b)
        for a, b in zip(shared.row[rarely].tolist(), shared.col[rarely].tolist(), strict=True)
        if len(each[a] & each[b]) >= SIMILAR * len(each[a] | each[b])
    ]
    pairs = np.array(near, dtype=int).reshape(-1, 2).T
    return sparse.csr_matrix((np.ones(len(near)), pairs), shape=(len(texts), len(texts)))


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}
