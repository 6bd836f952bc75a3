"""Evidence: perturbations come back from a file as they were, and a damaged one is one line."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Perturbation, ResidualDelta, TokenSuffix
from saebench_recovery.perturbations.evidence import PARTS, is_shared, joined, pack, unpack
from saebench_recovery.perturbations.kinds import KINDS
from tests.problems import problem_of, tiny_setting

every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def perturbation(kind: str) -> Perturbation:
    posed = problem_of(tiny_setting(kind), 2)
    return posed.admit(posed.random("test"))


def packed(
    parts: dict[str, Perturbation], ids: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file with them holds, once written and read."""
    tensors, metadata = pack(parts, ids, task="tiny", attack="some")
    return load(save(tensors, metadata)), metadata


def same(one: Perturbation, other: Perturbation) -> None:
    assert type(one) is type(other)
    found, wanted = one.tensors(), other.tensors()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


@every_kind
def test_parts_and_what_is_said_of_them_come_back(kind: str) -> None:
    whole = perturbation(kind)
    size = len(next(iter(whole.tensors().values())))
    index = torch.arange(size).flip(0)
    turned = whole.rows(index)
    parts = dict(zip(PARTS, (whole, turned, whole, turned, whole), strict=True))
    ids = [f"flip {i}" for i in range(size)]
    tensors, metadata = packed(parts, ids)
    assert metadata == {"kind": kind, "ids": json.dumps(ids), "task": "tiny", "attack": "some"}
    found = unpack(tensors, metadata)
    assert set(found) == set(PARTS)
    for name, part in parts.items():
        same(found[name], part)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1
    ),
    length=st.integers(0, 5),
)
def test_any_text_comes_back(texts: list[str], length: int) -> None:
    ids = torch.arange(len(texts) * length).view(len(texts), length)
    suffix = TokenSuffix(ids, torch.zeros(len(texts), dtype=torch.long), tuple(texts))
    tensors, metadata = packed({"headline": suffix}, texts)
    back = unpack(tensors, metadata)["headline"]
    assert isinstance(back, TokenSuffix)
    assert back.texts == suffix.texts
    same(back, suffix)
    assert json.loads(metadata["ids"]) == texts


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    layers=st.sets(st.integers(0, 5), min_size=1),
)
def test_chunks_of_different_lengths_join(sizes: list[tuple[int, int]], layers: set[int]) -> None:
    def delta(E: int, P: int) -> ResidualDelta:
        sites = [Site(layer, "hook_resid_post") for layer in layers]
        return ResidualDelta({s: torch.randn(E, P, 3) for s in sites}, torch.ones(E, P).long())

    deltas = [delta(*size) for size in sizes]
    chunks = [packed({"headline": d}, ["x"] * len(d.positions_EP)) for d in deltas]
    whole = unpack(joined([tensors for tensors, _ in chunks]), chunks[0][1])["headline"]
    assert isinstance(whole, ResidualDelta)
    begin = 0
    for one in deltas:
        E, P = one.positions_EP.shape
        part = whole.rows(torch.arange(begin, begin + E))
        assert torch.equal(part.positions_EP[:, :P], one.positions_EP)
        assert (part.positions_EP[:, P:] == -1).all()
        for site, values in one.values.items():
            assert torch.equal(part.values[site][:, :P], values)
            assert not part.values[site][:, P:].any()
        begin += E


def test_an_unknown_kind_is_one_clear_line() -> None:
    for metadata in ({"kind": "weights"}, {}):
        with pytest.raises(UserError, match=r"unknown kind.*known: residual, tokens") as caught:
            unpack({}, metadata)
        assert "\n" not in str(caught.value)


@every_kind
def test_damaged_tensors_are_one_clear_line(kind: str) -> None:
    tensors, metadata = packed({"headline": perturbation(kind)}, ["a"])
    alone = sum(not is_shared(name) for name in tensors) == 1  # nothing to be shorter than
    for name in tensors:
        missing = {other: tensor for other, tensor in tensors.items() if other != name}
        damaged = [missing]
        if len(tensors[name]) > 1 and (is_shared(name) or not alone):
            damaged.append({**tensors, name: tensors[name][:1]})
        if tensors[name].dtype == torch.float32:
            damaged.append({**tensors, name: tensors[name].double()})
            damaged.append({**missing, f"{name}/elsewhere": tensors[name]})
        if name.endswith("utf8"):
            damaged.append({**tensors, name: torch.full_like(tensors[name], 255)})
        for broken in damaged:
            with pytest.raises(UserError) as caught:
                unpack(broken, metadata)
            assert "\n" not in str(caught.value)
