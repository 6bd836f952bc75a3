"""Targets beyond the organism: by path, from the hub's cache, and every way in which that fails."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import _http

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.runs.fingerprint import target_fingerprint
from saebench_recovery.targets import hub
from saebench_recovery.targets.hub import load_model, load_sae
from saebench_recovery.targets.knowledge import facts, neutral_texts
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import Preset, name_of_parts, preset, presets
from tests.layouts import WIDTH, write_gpt2_cache, write_model, write_sae

HOOK = "blocks.2.hook_resid_post"
SITE = Site.parse(HOOK)
GEMMA = "google/gemma-2-2b"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return write_sae(tmp_path / "sae", HOOK)


# --- from folders ---------------------------------------------------------------------------


def test_target_from_folders(model: Path, sae: Path) -> None:
    target = load_target(name_of_parts(str(model), [str(sae)]), "cpu")
    assert list(target.dictionaries) == [SITE] == [target.site_for("ioi", None)]
    assert target.dictionary(SITE).d_model == WIDTH
    assert (target.encode("Then")[0], target.dtype) == (target.bos, torch.float32)
    assert target.neutral_texts == neutral_texts("general")


def test_hook_point_may_be_said_or_stand_in_the_folder(sae: Path) -> None:
    by_folder = preset(f"m+{sae}")
    assert by_folder.saes == preset(f"m+{sae}@{HOOK}").saes == {HOOK: str(sae)}
    assert preset("m+some-release/blocks.4.hook_resid_pre").saes == {
        "blocks.4.hook_resid_pre": "some-release/blocks.4.hook_resid_pre"
    }


def test_preset_without_bos(model: Path, sae: Path) -> None:
    chosen = preset(f"{model}+{sae}").model_copy(update={"bos": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saebench_recovery.targets.loading.preset", lambda *said: chosen)
        target = load_target("mine", "cpu")
    assert target.bos is None
    assert target.encode("Then") == tuple(
        target.tokenizer("Then", add_special_tokens=False).input_ids
    )


def test_half_precision_model_with_float32_readings(model: Path, sae: Path) -> None:
    target = load_target(f"{model}+{sae}", "cpu", dtype="bfloat16")
    assert (target.dtype, target.preset.dtype) == (torch.bfloat16, "bfloat16")
    dictionary = load_sae(str(sae), SITE, "cpu")
    assert dictionary.encode(torch.ones(1, 1, WIDTH, dtype=torch.bfloat16)).dtype == torch.float32


def test_fingerprint_follows_what_changes_the_numbers() -> None:
    original = preset("gpt2-small")
    changed = [
        original.model_copy(update=update)
        for update in ({}, {"revision": "b" * 40}, {"dtype": "bfloat16"}, {"bos": True})
    ]
    assert len({target_fingerprint(p) for p in changed}) == len(changed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2-smal", "unknown target 'gpt2-smal'; did you mean 'gpt2-small'.*--model and --sae"),
        (
            "m+release/id",
            "'release/id' is no folder here, and does not say which .* write release/id@bl",
        ),
        (
            "m+release/id@blocks.x",
            "'release/id@blocks.x' is no folder here, and does not say which",
        ),
    ],
)
def test_bad_name(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preset(name)


@pytest.mark.parametrize(
    ("model", "saes", "message"),
    [("", ["r/i"], "needs --model"), ("m", [], "one --sae"), ("m+n", ["r/i"], "may contain")],
)
def test_bad_parts(model: str, saes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        name_of_parts(model, saes)


def test_sae_of_another_width(model: Path, tmp_path: Path) -> None:
    narrow = write_sae(tmp_path / "narrow", HOOK, width=WIDTH - 1)
    target = load_target(f"{model}+{narrow}", "cpu")
    with pytest.raises(UserError, match=r"reads 31 dimensions.* has 32: it was trained"):
        target.dictionary(SITE)


def test_sae_beyond_the_last_block(model: Path, tmp_path: Path) -> None:
    deep = write_sae(tmp_path / "deep", "blocks.6.hook_resid_post")
    with pytest.raises(UserError, match=r"SAE at blocks.6.hook_resid_post, but .* has 6 blocks"):
        load_target(f"{model}+{deep}", "cpu")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_truncated_model(model: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(model, tmp_path / "copy")
    whole = (model / file).read_bytes()
    (tmp_path / "copy" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be loaded: |not JSON") as caught:
        load_model(described(str(tmp_path / "copy")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/sae", "is no folder, and SAELens knows no release 'nowhere'"),
        ("/nowhere/sae", "is no folder"),
        ("gpt2-small-res-jp/x", "release 'gpt2-small-res-jp'; did you mean gpt2-small-res-jb"),
        ("gpt2-small-res-jb/blocks.4.hook_resid", "has no SAE .*; did you mean blocks.4.hook_r"),
    ],
)
def test_unknown_sae(place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sae(place, SITE, "cpu")


def test_presets_name_saes_that_saelens_knows() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    for name, chosen in presets().items():
        for place in chosen.saes.values() if name != "organism" else ():
            release, _, sae_id = place.partition("/")
            assert sae_id in known[release].saes_map


# --- general knowledge ------------------------------------------------------------------------


def test_general_knowledge_is_well_formed() -> None:
    asked = facts("general")
    assert len(asked) >= 40
    assert len({prompt for prompt, _, _ in asked}) == len(asked)
    for prompt, answer, others in asked:
        assert not prompt.endswith(" ")
        assert len({answer, *others}) == 4
        assert all(text.startswith(" ") for text in (answer, *others))
    texts = neutral_texts("general")
    assert len(texts) == len(set(texts)) >= 30


# --- from the hub's cache, without a connection -----------------------------------------------


def test_preset_loads_from_a_cache_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gpt2_cache(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    target = load_target("gpt2-small", "cpu")
    assert (target.bos, target.dtype) == (None, torch.float32)
    # The release's SAEs were trained on centred weights, which only SAELens' own table says.
    assert target.dictionary(target.site_for("ioi", None)).centred


def test_offline_and_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = "is not in the local cache, and HF_HUB_OFFLINE forbids a connection; the same command"
    with pytest.raises(UserError, match=f"model '{GEMMA}' is no folder, {GEMMA} {line}"):
        load_model(described(GEMMA))
    with pytest.raises(UserError, match=f"SAE 'gpt2-small-res-jb/.*' .* jbloom/GPT2-.* {line}"):
        load_sae("gpt2-small-res-jb/blocks.4.hook_resid_pre", SITE, "cpu")


# --- what the hub may answer --------------------------------------------------------------------


def described(model: str) -> Preset:
    return Preset(description="", model=model, revision="b" * 40, saes={}, tasks={})


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets what the hub answers to every request of the real clients; nothing is sent."""
    client = type(huggingface_hub.get_session())
    http: Any = importlib.import_module(client.__module__.partition(".")[0])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between retries

    def answer(status: int, code: str) -> None:
        def handle(request: Any) -> Any:
            if status == 0:
                raise http.ConnectError("no route to host", request=request)
            return http.Response(status, headers={"X-Error-Code": code}, request=request)

        transport = http.MockTransport(handle)
        huggingface_hub.set_client_factory(lambda: http.Client(transport=transport))

    yield answer
    huggingface_hub.set_client_factory(_http.default_client_factory)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated: accept its terms at https://.*, then log in with `hf auth"),
        (401, "GatedRepo", "is gated"),
        (401, "RepoNotFound", "is not found: there is no such folder, and .* is not on the hub"),
        (404, "RevisionNotFound", "does not have the revision that was asked for"),
        (0, "", "is not in the local cache, and https://.* cannot be reached; the same"),
        (500, "", r"is not in the local cache, and https://.* answered 500 \(Internal Server Err"),
        (
            403,
            "",
            r"is not in the local cache, and https://.* answered 403 \(Forbidden\); the same",
        ),
    ],
)
def test_each_answer_of_the_hub_is_one_line(
    answers: Callable[..., None], status: int, code: str, message: str
) -> None:
    answers(status, code)
    with pytest.raises(UserError, match=message) as of_model:
        load_model(described(GEMMA))
    with pytest.raises(UserError, match=message) as of_sae:
        load_sae("gpt2-small-res-jb/blocks.4.hook_resid_pre", SITE, "cpu")
    for caught, repository in ((of_model, GEMMA), (of_sae, "jbloom/GPT2-Small-SAEs-Reformatted")):
        assert "\n" not in str(caught.value)
        assert repository in str(caught.value)


def test_neither_folder_nor_repository() -> None:
    with pytest.raises(UserError, match="'/no/such/folder' is not found: there is no such folder"):
        load_model(described("/no/such/folder"))


def test_a_release_is_read_only_when_it_is_used(
    model: Path, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name_of_parts(str(model), [str(sae), "release/never@blocks.3.hook_resid_post"])
    target = load_target(name, "cpu")
    assert target.dictionary(SITE) is target.dictionary(SITE)
    assert len(target.dictionaries) == 2
    assert hub.local_folder("release/never") is None
