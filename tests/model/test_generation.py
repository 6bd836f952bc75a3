"""Generation with a cache is the cache-free loop, and no part of a delta is lost in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from saebench_recovery.defenses.clamp import Clamp
from torch import Tensor

from saebench_recovery.base.sites import Site
from saebench_recovery.interfaces import Example, ResidualDelta
from saebench_recovery.model.defended import DefendedModel
from saebench_recovery.model.drafts import Drafts
from saebench_recovery.model.generation import continued, written
from saebench_recovery.model.meter import Meter
from saebench_recovery.model.plain import Conditions, PlainModel
from saebench_recovery.spec import ThreatModel
from tests.plain import plain_model
from tests.tiny import (
    ARCHITECTURES,
    BOS,
    EOS,
    VOCABULARY,
    WIDTH,
    WINDOW,
    shared_target,
    tiny_model,
    tiny_target,
)

SITE = Site.parse("blocks.1.hook_resid_post")
LENGTHS = (5, 12, 9, 9)  # the second alone is longer than the sliding window
NEW = 6
# Per example: the end of the prompt, its answer, both, and the middle of the prompt.
POSITIONS = ((4, -1, -1, -1), (12, 13, 15, -1), (8, 9, 10, 11), (2, 5, 9, -1))

assert max(LENGTHS) > WINDOW > min(LENGTHS)


def prompts() -> list[Example]:
    """The last two examples have one prompt."""
    drawn = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length - 1,), generator=drawn).tolist()

    made = [Example(str(i), (BOS, *tokens(n)), ((5,), (6,))) for i, n in enumerate(LENGTHS)]
    return [*made[:3], replace(made[3], prompt=made[2].prompt)]


def random_delta(positions: Sequence[Sequence[int]] = POSITIONS) -> ResidualDelta:
    positions_EP = torch.tensor(positions)
    drawn = torch.Generator().manual_seed(1)
    values_EPD = 3 * torch.randn(*positions_EP.shape, WIDTH, generator=drawn)
    return ResidualDelta({SITE: values_EPD * (positions_EP >= 0)[..., None]}, positions_EP)


def clamped(architecture: str, threat_model: ThreatModel = "reclamp") -> DefendedModel:
    target = shared_target(architecture)
    defense = Clamp(Clamp.Config(value=4.0, positive_only=False))
    defense.latents = {SITE: target.dictionary(SITE).defended(torch.arange(0, 96, 8))}
    return DefendedModel(target, defense, threat_model)


@cache
def reference(architecture: str) -> PlainModel:
    return plain_model(tiny_model(architecture))


@pytest.mark.parametrize("threat_model", get_args(ThreatModel))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_equals_a_loop_without_a_cache(
    architecture: str, threat_model: ThreatModel
) -> None:
    """A batch of prompts of several lengths, two of them equal, each with its own delta."""
    active, examples, delta = clamped(architecture, threat_model), prompts(), random_delta()
    found = continued(active, examples, NEW, delta)
    for i, example in enumerate(examples):
        alone = delta.rows(torch.tensor([i]))
        conditions = Conditions(active.defense, alone, threat_model)
        assert found[i] == reference(architecture).continued(example.prompt, NEW, conditions)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_and_company_change_nothing(architecture: str) -> None:
    active, examples, delta = clamped(architecture), prompts(), random_delta()
    together = continued(active, examples, NEW, delta)
    bare = continued(active, examples, NEW)
    for i, example in enumerate(examples):
        alone = delta.rows(torch.tensor([i]))
        assert continued(active, [example], NEW, alone) == [together[i]]
        assert continued(active, [example], NEW) == [bare[i]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_of_a_delta_moves_the_residual_where_it_stands(architecture: str) -> None:
    """Each perturbed position is passed exactly once, and exactly its own row is added there."""

    class Watch(Clamp):
        """Notes what the defense is given."""

        def intervene(self, site: Site, resid_BTD: Tensor) -> Tensor:
            seen.append(resid_BTD)
            return resid_BTD

    active = clamped(architecture)
    assert active.defense is not None
    watching = Watch()
    watching.latents = active.defense.latents
    active = replace(active, defense=watching)
    example = prompts()[1]
    start = len(example.prompt) - 1
    for position in range(1, start + NEW):
        delta = random_delta([[position]])
        runs = []
        for moved in (None, delta):
            seen: list[Tensor] = []
            ids = continued(active, [example], NEW, moved)
            runs.append((torch.cat(seen, 1)[0], ids[0]))
        (before_TD, before), (after_TD, after) = runs
        index = max(0, position - start)
        assert before_TD.shape[0] == after_TD.shape[0] == start + NEW
        assert torch.allclose(after_TD[:position], before_TD[:position], atol=1e-5)
        gap_D = after_TD[position] - before_TD[position]
        assert torch.allclose(gap_D, delta.values[SITE][0, 0], atol=1e-4)
        assert after[:index] == before[:index]


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_rows_in_the_answer_change_what_is_written_after_them(architecture: str) -> None:
    active, example = clamped(architecture), prompts()[1]
    start = len(example.prompt) - 1
    (bare,) = continued(active, [example], NEW)
    for position in range(start, start + NEW):
        delta = random_delta([[position]])
        large = replace(delta, values={SITE: 100 * delta.values[SITE]})
        (found,) = continued(active, [example], NEW, large)
        index = position - start
        assert found[:index] == bare[:index]
        assert found[index:] != bare[index:]


def test_rows_stop_at_their_end_and_the_others_go_on() -> None:
    """Whatever the model writes often serves as its end: rows then stop at different tokens."""
    target = tiny_target("gpt2")
    active, examples = DefendedModel(target, None), prompts()
    whole = continued(active, examples, 20)
    for end in {token for row in whole for token in row}:
        model: Any = target.model
        model.generation_config.eos_token_id = [end, VOCABULARY]
        found = continued(active, examples, 20)
        for row, full in zip(found, whole, strict=True):
            stop = full.index(end) + 1 if end in full else len(full)
            assert row == full[:stop]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drafts_change_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are written again, or only as they begin, or not at all; some end early."""
    active, examples, delta = clamped(architecture), prompts(), random_delta()
    model: Any = active.target.model
    whole = continued(active, examples, NEW, delta)
    begun = [(*ids[:2], *(VOCABULARY - 1 - token for token in ids[2:])) for ids in whole]
    for end in (whole[0][2], VOCABULARY):
        monkeypatch.setattr(model.generation_config, "eos_token_id", [end, VOCABULARY])
        drafts = Drafts()
        for scale in (1.0, 0.0, 0.4, 1.0):
            scaled = replace(delta, values={SITE: scale * delta.values[SITE]})
            plain = continued(active, examples, NEW, scaled)
            assert continued(active, examples, NEW, scaled, drafts) == plain
            drafts.keep(examples, begun)


def test_a_text_that_is_written_again_takes_one_pass_behind_its_first_token() -> None:
    active, (example, *_) = clamped("gpt2"), prompts()
    drafts, meter, delta = Drafts(), Meter(), random_delta([[len(prompts()[0].prompt) - 1]])
    first = continued(active, [example], NEW, delta, drafts)
    with meter.counting():
        assert continued(active, [example], NEW, delta, drafts) == first
    assert meter.forward == 2  # the prompt's last token, the draft: what comes before is kept
    assert meter.token_layers == NEW * active.target.depth()


def test_work_on_shared_prompts_is_done_once() -> None:
    active, example = clamped("gpt2"), prompts()[1]
    P, few, many = len(example.prompt), Meter(), Meter()
    positions = [[P - 1]]
    with few.counting():
        continued(active, [example], NEW, random_delta(positions))
    with many.counting():
        continued(active, [example] * 8, NEW, random_delta(positions * 8))
    layers = active.target.depth()
    assert few.token_layers == (P - 1 + NEW) * layers
    assert many.token_layers == (P - 1 + 8 * NEW) * layers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_prompts_begin_with_alike_is_run_once(architecture: str) -> None:
    """It changes no text, also where the prompts go on to different lengths."""
    active, begin, meter = clamped(architecture), prompts()[1].prompt, Meter()
    examples = [Example(str(n), (*begin, *range(4, 4 + n)), ((3,),)) for n in (2, 3, 3)]
    alone = [continued(active, [example], NEW)[0] for example in examples]
    with meter.counting():
        assert continued(active, examples, NEW) == alone
    tokens = len(begin) + (1 + 2) + 3 * NEW  # the second and third prompt are the same
    assert meter.token_layers == tokens * active.target.depth()


def test_texts_hold_no_special_tokens() -> None:
    active = DefendedModel(shared_target("gpt2"), None)
    for text, ids in zip(
        written(active, prompts(), NEW),
        continued(active, prompts(), NEW),
        strict=True,
    ):
        assert active.target.encode(text) == (BOS, *(token for token in ids if token > EOS))
