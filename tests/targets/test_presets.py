"""A user's own preset in a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from saebench_recovery.base.catalogue import BUILT_IN
from saebench_recovery.base.errors import UserError
from saebench_recovery.base.sites import Site
from saebench_recovery.runs.fingerprint import target_fingerprint
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.sae.files import load_dictionary
from saebench_recovery.sae.host import Host
from saebench_recovery.spec import RunSpec
from saebench_recovery.targets.loading import load_target
from saebench_recovery.targets.presets import preset, presets
from tests.layouts import write_model, write_sae

HOOK = "blocks.2.hook_resid_post"
SAID = {"model": "model", "saes": {HOOK: "saes/here"}, "bos": False}


def written(folder: Path, said: Any, name: str = "mine.yaml") -> str:
    """The target's name: the path of its file."""
    text = json.dumps(said) if name.endswith(".json") else yaml.safe_dump(said)
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine.json", "a+b.yaml"])
def test_target_from_a_file(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "model")
    write_sae(tmp_path / "saes" / "here", HOOK)
    target = load_target(written(tmp_path, SAID, name), "cpu")
    assert target.name == name.rpartition(".")[0]  # no folder of this machine in a row
    assert [str(site) for site in target.dictionaries] == [HOOK]
    assert target.dictionary(target.site_for("ioi", None)).d_model == 32
    assert target.bos is None
    assert target.preset.tasks.keys() == BUILT_IN["task"].keys()


def test_only_what_lies_beside_the_file_is_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    chosen = preset(written(tmp_path, {"model": "model", "saes": {HOOK: "release/id"}}))
    assert (chosen.model, chosen.saes[HOOK]) == (str(tmp_path / "model"), "release/id")
    missing = preset(written(tmp_path, {"model": "./gone", "saes": {HOOK: "release/id"}}))
    assert missing.model == str(tmp_path / "gone")


def test_the_model_of_a_preset_brings_what_belongs_to_it(tmp_path: Path) -> None:
    named = {"model": "gpt2-small", "saes": {HOOK: "a/b"}}
    chosen, known = preset(written(tmp_path, named)), presets()["gpt2-small"]
    assert (chosen.model, chosen.revision) == (known.model, known.revision)
    assert (chosen.bos, known.bos) == (False, False)
    assert chosen.saes.keys() == {HOOK}
    assert chosen.tasks["ioi"].site == HOOK
    assert preset(written(tmp_path, {**named, "bos": True})).bos


def test_identity_follows_what_the_file_says(tmp_path: Path) -> None:
    write_sae(tmp_path / "saes" / "here", HOOK)
    clamp = {"ioi": {"site": HOOK, "defenses": {"clamp": {"latents": 3}}}}
    changes: list[dict[str, Any]] = [
        {},
        {"bos": True},
        {"revision": "v2"},
        {"dtype": "bfloat16"},
        {"model": "other"},
        {"tasks": clamp},
    ]
    identities = set()
    for change in changes:
        name = written(tmp_path, {**SAID, **change})
        spec = check_names(RunSpec(target=name, tasks=("ioi",)))
        identities.add(Plan.of(spec).identity)
    assert len(identities) == len(changes)
    spec = check_names(RunSpec(target=written(tmp_path, SAID), tasks=("ioi",), dtype="bfloat16"))
    assert Plan.of(spec).identity in identities  # it is the same to say so in the command
    before = target_fingerprint(preset(written(tmp_path, SAID)))
    (tmp_path / "saes" / "here" / "sae_weights.safetensors").write_bytes(b"other")
    assert target_fingerprint(preset(written(tmp_path, SAID))) != before


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"model": "m"}, "saes is missing; it maps one hook point or more"),
        ({**SAID, "saes": {}}, "saes is {}; it maps"),
        ({**SAID, "sae": 1}, "unknown key 'sae'; did you mean 'saes'"),
        ({"model": "m", "sae": {HOOK: "a/b"}}, "unknown key 'sae'; did you mean 'saes'"),
        ({"saes": {HOOK: "a/b"}}, "model is missing; allowed: text"),
        ({**SAID, "dtype": "float16"}, "dtype is 'float16'; did you mean 'bfloat16'"),
        ({**SAID, "saes": {"blocks.2": "a/b"}}, "unknown hook point 'blocks.2'; allowed"),
        ({**SAID, "tasks": {"ioi": {"site": "here"}}}, "unknown hook point 'here'; allowed"),
        ({**SAID, "tasks": {"ioi": {"where": HOOK}}}, "tasks"),
        ("only text", "holds no mapping; write model, saes"),
    ],
)
def test_a_file_that_is_no_preset(tmp_path: Path, said: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        preset(written(tmp_path, said))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        preset(str(tmp_path / "gone.yaml"))
    for name in ("broken.yaml", "broken.json"):
        (tmp_path / name).write_text("{model: [")
        with pytest.raises(UserError, match=rf"cannot read .*{name}': not (YAML|JSON)"):
            preset(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [("gemma-3-270m", "gemma3_text", 640), ("smollm2-135m-instruct", "llama", 576)],
)
def test_the_targets_of_the_leaderboards(name: str, kind: str, width: int) -> None:
    chosen = preset(str(Path(__file__).parents[2] / "leaderboards" / f"{name}.yaml"))
    assert chosen.model == presets()[name].model
    ((hook, folder),) = chosen.saes.items()
    dictionary = load_dictionary(folder, Site.parse(hook), host=Host(None, kind))
    assert (dictionary.d_model, dictionary.width) == (width, 4096)
    assert chosen.tasks["refusal"].site == hook


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    (tmp_path / "saes" / "layer-9").mkdir(parents=True)
    chosen = preset(str(tmp_path / "mine.yaml"))
    assert chosen.dtype == "bfloat16"
    assert chosen.saes["blocks.9.hook_resid_post"] == str(tmp_path / "saes" / "layer-9")
    assert chosen.tasks["ioi"].defenses["clamp"] == {"latents": 64, "multiplier": -2}
