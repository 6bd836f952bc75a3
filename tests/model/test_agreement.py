"""The check at load: what is exact passes, and every planted fault is refused in a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import KINDS, Site
from saebench_recovery.model import addends, hooks, plain_hooks, sampled_blocks
from saebench_recovery.model.agreement import check_agreement
from saebench_recovery.model.attention import NAME
from saebench_recovery.model.examples import Example
from saebench_recovery.model.language_model import LanguageModel
from saebench_recovery.targets.loading import load_target
from tests.model.architectures import outcome
from tests.model.longest_row import by_longest_row
from tests.model.tiny_architectures import tiny
from tests.tiny import ARCHITECTURES, TinyTokenizer, tiny_model

INSIDE = tuple(kind for kind in KINDS if not kind.startswith("hook_resid_p"))
EXACT = 1e-5


def language_model(model: nn.Module) -> LanguageModel:
    return LanguageModel("a tiny model", model, TinyTokenizer())


def every_kind(layer: int = 1) -> list[Site]:
    return [Site(layer, kind) for kind in KINDS]


@pytest.mark.parametrize("model_type", ["olmo2", "exaone4", "glm4", "granite", "afmoe", "llama"])
def test_hook_points_inside_a_block_are_what_it_adds(model_type: str) -> None:
    """Norms of outputs, multipliers of the residual, and neither."""
    found = check_agreement(language_model(tiny(model_type)), every_kind())
    assert found.refused == {}
    assert {str(site) for site in every_kind()} < found.errors.keys()
    assert max(found.errors.values()) < EXACT


@pytest.mark.parametrize("model_type", ["phi", "gptj", "codegen"])
def test_parallel_blocks_have_no_residual_in_between(model_type: str) -> None:
    target = language_model(tiny(model_type))
    found = check_agreement(target, [Site(1, "hook_attn_out"), Site(1, "hook_mlp_out")])
    assert list(found.refused) == ["hook_resid_mid"]
    assert max(found.errors.values()) < EXACT
    name = type(target.model).__name__
    with pytest.raises(UserError, match=f"{name}: .*run in parallel"):
        check_agreement(target, [Site(1, "hook_resid_mid")])


def test_a_kind_that_the_check_refuses_cannot_be_edited() -> None:
    target = language_model(tiny("granitemoeshared"))
    found = check_agreement(target, [Site(1, "hook_resid_post")])
    assert set(found.refused) == set(INSIDE)
    hooks.refuse_kinds(target.model, found.refused)
    for kind in INSIDE:
        edits = {Site(2, kind): lambda resid: resid}
        with (
            pytest.raises(UserError, match=f"no blocks.2.{kind}"),
            hooks.edited(target.model, edits),
        ):
            pass


@pytest.mark.parametrize("model_type", ["bloom", "falcon", "diffllama", "mamba", "xglm", "minimax"])
def test_other_attention_and_other_caches_are_one_line(model_type: str) -> None:
    found = outcome(model_type)
    assert found.error is None
    assert str(found.made) in found.line
    assert "\n" not in found.line


# --- planted faults --------------------------------------------------------------------------


def wrong_module(patch: pytest.MonkeyPatch) -> str:
    """The MLP's output before its norm."""
    patch.setattr(addends, "_MLP_NORMS", ())
    return "olmo2"


def missing_multiplier(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(addends.Addend, "of", lambda _, output: output)
    return "granite"


def multiplier_missing_in_both(patch: pytest.MonkeyPatch) -> str:
    """The engines agree, and the sums do not."""
    patch.setattr(addends.Addend, "of", lambda _, output: output)
    patch.setattr(addends.Addend, "output", lambda _, output, added: added)
    patch.setattr(plain_hooks, "_scaled", lambda factor, replacement: replacement)
    return "granite"


def shifted_layer(patch: pytest.MonkeyPatch) -> str:
    own: Callable[..., Any] = hooks._install
    model = tiny("llama")
    after = dict(zip(hooks.blocks(model), [*hooks.blocks(model)][1:], strict=False))
    patch.setattr(
        hooks, "_install", lambda block, site, edit: own(after.get(block, block), site, edit)
    )
    patch.setitem(globals(), "tiny", lambda _: model)
    return "llama"


def neighbours_seen(patch: pytest.MonkeyPatch) -> str:
    """Positions are those of the longest row, as with a table that is computed for it."""
    model = tiny("llama")
    own = model.base_model.rotary_emb.forward

    def scaled(x: Any, position_ids: Any) -> Any:
        return own(x, position_ids * (1 + position_ids.max()) / 8)

    model.base_model.rotary_emb.forward = scaled
    patch.setitem(globals(), "tiny", lambda _: model)
    return "llama"


@pytest.mark.parametrize(
    "plant",
    [
        wrong_module,
        missing_multiplier,
        multiplier_missing_in_both,
        shifted_layer,
        neighbours_seen,
    ],
)
@pytest.mark.parametrize("sampled", [False, True])
def test_planted_faults_are_refused_by_architecture(
    plant: Callable[[pytest.MonkeyPatch], str], sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sampled:
        monkeypatch.setattr(sampled_blocks, "ALL_BELOW", 0)
    model_type = plant(monkeypatch)
    model = tiny(model_type)
    with pytest.raises(UserError, match=f"^{type(model).__name__} is not run exactly: .*differs"):
        check_agreement(language_model(model), every_kind())


# --- positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_row_end_at_the_original_context(kind: str) -> None:
    target = language_model(by_longest_row(kind).eval())
    assert max(check_agreement(target).errors.values()) < EXACT
    fitting = Example("fits", (1, *range(3, 26)), ((5,),))
    longer = Example("far/7", (1, *range(3, 27)), ((5,),))
    assert target.batch([fitting]).examples == (fitting,)
    with pytest.raises(UserError, match=r"far/7 takes 25 tokens .* positions for 24"):
        target.batch([fitting, longer])


# --- which blocks, and what is kept ----------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_a_large_model_some_blocks_are_run(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled_blocks, "ALL_BELOW", 0)
    found = check_agreement(language_model(tiny_model(architecture)), [Site(3, "hook_resid_post")])
    windowed = architecture in ("gemma2", "gemma3")
    assert found.blocks == ((0, 1, 3) if windowed else (0, 3))
    assert max(found.errors.values()) < EXACT


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_half_precision_is_held_to_what_rounding_allows(model_type: str) -> None:
    target = language_model(tiny(model_type).to(torch.bfloat16))
    assert check_agreement(target, every_kind()).refused == {}


def test_the_check_leaves_the_model_as_it_was() -> None:
    target = language_model(tiny("gemma2"))
    check_agreement(target, every_kind())
    config: Any = target.model.config
    assert config._attn_implementation == NAME
    for module in target.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_a_target_is_checked_when_it_is_loaded() -> None:
    found = load_target("organism", "cpu").agreement
    assert found.refused == {}
    assert max(found.errors.values()) < EXACT
    assert {"blocks.2.hook_resid_post", "the tail's logits"} < found.errors.keys()
