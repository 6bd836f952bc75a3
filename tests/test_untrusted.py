"""Files from a stranger execute nothing: each exploit would leave a marker, and none is there."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench_recovery import registry
from saebench_recovery.base import named_code
from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.errors import UserError
from saebench_recovery.results.chunks import read_log
from saebench_recovery.results.report.escape import markdown
from saebench_recovery.results.report.seeds_table import print_seeds
from saebench_recovery.runs.run import allow_named
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets import hub, rendering
from saebench_recovery.targets.hub import load_model
from saebench_recovery.targets.presets import Preset, preset
from tests.boards import HOSTILE
from tests.cli.test_cli import saebench
from tests.fakes import flag, row, run_result, write_run
from tests.layouts import write_model
from tests.saes import SITE

Patch = pytest.MonkeyPatch
CODE = "import pathlib; pathlib.Path({marker!r}).touch()\n"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: Patch) -> Any:
    """What no exploit may make; and nobody is asked for leave to make it."""

    def ask(prompt: str = "") -> str:
        raise AssertionError(f"the user was asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)
    file = tmp_path / "marker"
    yield file
    assert not file.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A folder of a model to tamper with."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(do: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        do()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_model(folder: Path) -> str:
    described = Preset(description="", model=str(folder), saes={}, tasks={})
    return refused(lambda: load_model(described))


class Exploit:
    """A pickle that runs code when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return exec, (CODE.format(marker=str(self.marker)),)


# --- models -----------------------------------------------------------------------------------


def test_pickled_weights(model: Path, marker: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(marker)))
    assert "pytorch_model.bin is a pickle, which can run code" in refused_model(model)


def test_code_beside_a_model(model: Path, marker: Path) -> None:
    names = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "code.Mine")
    edit(model / "config.json", model_type="of_my_own", auto_map=names)
    (model / "code.py").write_text(CODE.format(marker=str(marker)))
    assert "brings code of its own, which is never run" in refused_model(model)


def test_code_beside_a_tokenizer(model: Path, marker: Path) -> None:
    """transformers has a tokenizer for the architecture, and takes that one."""
    names = {"AutoTokenizer": ["code.Mine", None]}
    edit(model / "tokenizer_config.json", tokenizer_class="OfMyOwn", auto_map=names)
    (model / "code.py").write_text(CODE.format(marker=str(marker)))
    tokenizer, _ = load_model(Preset(description="", model=str(model), saes={}, tasks={}))
    assert type(tokenizer).__module__.startswith("transformers.")


def test_a_kernel_that_a_configuration_names(model: Path, marker: Path) -> None:
    edit(model / "config.json", attn_implementation="someone/kernel")
    assert "names the attention kernel 'someone/kernel'" in refused_model(model)


def test_an_adapter(model: Path, marker: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "is an adapter to another model" in refused_model(model)


@pytest.mark.parametrize("name", ["n_layer", "n_embd", "vocab_size", "n_positions"])
def test_sizes_that_no_model_has(model: Path, name: str) -> None:
    edit(model / "config.json", **{name: 10**9})
    assert "1000000000; sensible are 0 to " in refused_model(model)


def test_weights_that_are_missing_or_too_many(model: Path) -> None:
    file = model / "model.safetensors"
    weights = load_file(file)
    (lost,) = [name for name in weights if name.endswith("h.3.mlp.c_fc.weight")]
    save_file({k: v for k, v in weights.items() if k != lost}, file, {"format": "pt"})
    assert "has missing weights: transformer.h.3.mlp.c_fc.weight" in refused_model(model)
    save_file({**weights, "other": torch.zeros(2)}, file, {"format": "pt"})
    assert "has unexpected weights: other" in refused_model(model)


def test_an_unharmed_model_with_tied_weights_loads(whole: Path) -> None:
    _, found = load_model(Preset(description="", model=str(whole), saes={}, tasks={}))
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight


# --- SAEs and evidence ------------------------------------------------------------------------


def test_pickled_arrays(tmp_path: Path, marker: Path) -> None:
    objects = np.array([Exploit(marker)], dtype=object)
    np.savez(tmp_path / "params.npz", W_enc=objects)
    assert "allow_pickle" in refused(lambda: load_dictionary(tmp_path, SITE))


def test_published_saes_that_are_pickles_are_known_by_name() -> None:
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS as LOADERS

    pickled = {name for name, load in LOADERS.items() if "torch.load(" in inspect.getsource(load)}
    assert set(hub.PICKLED) == pickled
    said = refused(lambda: hub.published_sae("gpt2-small-hook-z-kk/blocks.0.hook_z"))
    assert "is published as a pickle" in said


@pytest.mark.parametrize("place", ["../../secret.safetensors", "/etc/passwd", "evidence/../a"])
def test_evidence_outside_its_folder(tmp_path: Path, place: str) -> None:
    cost = {"forward": 0, "backward": 0, "token_layers": 0, "flops": 0, "seconds": 0}
    cost["peak_bytes"] = 0
    names = {"task": "a", "attack": "b", "evidence": place, "sha256": "c"}
    sizes = dict.fromkeys(("records", "records_end", "texts_end"), 0)
    line = {**names, **sizes, "attacking": cost, "scoring": cost}
    (tmp_path / "chunks.jsonl").write_text(json.dumps(line) + "\n")
    assert "broken at line 1" in refused(lambda: read_log(tmp_path))


# --- names of code ----------------------------------------------------------------------------


def target(folder: Path, **changes: Any) -> str:
    file = folder / "target.json"
    file.write_text(json.dumps({"model": "organism", "saes": {str(SITE): "a/b"}, **changes}))
    return str(file)


def importable(folder: Path, monkeypatch: Patch, marker: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("place", ["task", "defense"])
def test_a_judge_that_a_target_names(
    tmp_path: Path, monkeypatch: Patch, marker: Path, place: str
) -> None:
    importable(tmp_path, monkeypatch, marker, "a_judge")
    judge = {"judge": "a_judge:run"}
    settings = {"task": judge} if place == "task" else {"defenses": {"clamp": judge}}
    name = target(tmp_path, tasks={"refusal": {"site": str(SITE), **settings}})
    assert "name it on the command line: -T judge=" in refused(lambda: preset(name))


def test_a_judge_that_a_stored_spec_names(tmp_path: Path, monkeypatch: Patch, marker: Path) -> None:
    importable(tmp_path, monkeypatch, marker, "another_judge")
    spec = RunSpec(tasks=("refusal",), task_config={"judge": "another_judge:run"})
    said = refused(lambda: registry.create("task", "refusal", spec.task_config))
    assert "a file alone may not have it imported" in said
    assert "another_judge" not in sys.modules
    monkeypatch.setattr(named_code, "_named", set(named_code._named))
    allow_named(RunSpec(task_config={"judge": "operator:add"}))  # the user's own words
    registry.create("task", "refusal", {"judge": "operator:add"})


def test_a_package_that_a_target_names(tmp_path: Path, monkeypatch: Patch, marker: Path) -> None:
    importable(tmp_path, monkeypatch, marker, "a_package")
    chosen = preset(target(tmp_path, model="gguf:a_package"))
    assert "a file alone may not have it imported" in refused(lambda: load_model(chosen))
    monkeypatch.setattr(named_code, "_named", {"gguf:../a_package"})
    outside = chosen.model_copy(update={"model": "gguf:../a_package"})
    assert "is not the name of a module" in refused(lambda: load_model(outside))


def test_a_tag_that_constructs(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str], marker: Path
) -> None:
    file = tmp_path / "target.yaml"
    file.write_text(f"model: !!python/object/apply:os.system ['touch {marker}']")
    assert saebench(monkeypatch, "run", "--target", str(file)) == 2
    assert "not YAML that holds data alone" in capsys.readouterr().err


# --- templates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'other' %}", "Error"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('touch marker') }}", "SecurityError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{% for i in range(9999) %}" * 3 + "x" + "{% endfor %}" * 3, "takes more than 2 s"),
        ("{{ 9 ** (10 ** 9) }}", "takes more than 2 s"),
        ("{{ 'x' * 10 ** 10 }}", "MemoryError"),
        ("{{ 'x' * 10 ** 7 }}", "10000000 characters, more than"),
    ],
)
def test_templates_end_in_one_line(template: str, line: str, monkeypatch: Patch) -> None:
    assert rendering.rendered("{{ bos }}{{ messages[0].content }}", CHAT, {"bos": "<s>"}) == "<s>hi"
    monkeypatch.setattr(rendering, "SECONDS", 2)
    assert line in refused(lambda: rendering.rendered(template, CHAT, {}))


CHAT = [{"role": "user", "content": "hi"}]


# --- what is shown ----------------------------------------------------------------------------


@pytest.mark.usefixtures("made_up_runs")
def test_names_in_a_terminal(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {**run_result().spec, "target": HOSTILE, "attack": HOSTILE}
    shown = row(HOSTILE, target=HOSTILE, attack=HOSTILE, flags=(flag(HOSTILE),))
    run = write_run(tmp_path / "run", run_result(shown, spec=spec), [])
    assert saebench(monkeypatch, "show", str(run)) == 0
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(printed)
    assert saebench(monkeypatch, "show", f"no\x1b[31m{tmp_path}") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_plugin_in_a_terminal(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in BUILT_IN})
    file = tmp_path / "hostile.py"
    file.write_text(
        "from pydantic import Field\n"
        "from saebench_recovery import register_defense\n"
        "from saebench_recovery.interfaces import Defense\n"
        "@register_defense('hostile')\n"
        "class Hostile(Defense):\n"
        f"    __doc__ = {HOSTILE!r}\n"
        "    class Config(Defense.Config):\n"
        f"        value: float = Field(default=1.0, description={HOSTILE!r})\n"
        "    def intervene(self, site, resid_BTD):\n"
        "        return resid_BTD\n"
    )
    for name in ((), ("hostile",)):
        assert saebench(monkeypatch, "list", "defenses", *name, "--plugin", str(file)) == 0
        printed = capsys.readouterr().out
        assert "[/bold]" in printed
        assert not {"\x1b", "\x07"} & set(printed)


def test_seeds_of_a_hostile_target(capsys: pytest.CaptureFixture[str]) -> None:
    spec = {**run_result().spec, "target": HOSTILE, "attack": HOSTILE}
    print_seeds([run_result(row(HOSTILE), spec=spec)])
    printed = capsys.readouterr().out
    assert "[/bold]" in printed
    assert not {"\x1b", "\x07"} & set(printed)


def test_names_on_a_page() -> None:
    cell = markdown(HOSTILE)
    assert "\n" not in cell
    for escaped in (r"\|", r"\<script\>", r"\`x\`", r"\[l\]"):
        assert escaped in cell
    assert markdown("organism") == "organism"
