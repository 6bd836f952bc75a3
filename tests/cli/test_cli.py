"""The command line as a user meets it: output, exit codes, one line for bad input."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from signal import Signals
from typing import Any

import pytest
from typer.testing import CliRunner

from saebench_recovery import cli
from saebench_recovery.cli import app, main
from saebench_recovery.results.store import RESULT, read_result
from saebench_recovery.runs.plan import Plan, check_names
from saebench_recovery.schema import SCHEMA_VERSION
from saebench_recovery.spec import Limits, RunSpec, command
from tests.fake_engine import Engine
from tests.fakes import TASKS, flag, row, run_result, write_run

Capture = pytest.CaptureFixture[str]


def saebench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["saebench", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["sae", "train", "--help"],
        ["sae", "train", "--hook", "nowhere", "--out", "a"],
        ["sae", "train", "--hook", "blocks.1.hook_resid_post", "--out", "a", "--tokens", "1"],
        ["list", "defenses"],
        ["list", "targets"],
        ["list", "defenses", "clamp"],
        ["run", "--defense", "clmp"],
        ["run", "-D", "nonsense=1"],
        ["run", "--task", "ioii"],
        ["run", "--budget", "lots"],
        ["run", "--out", "/dev/null/runs"],
        ["show", "nowhere"],
        ["report", "nowhere"],
        ["schema"],
    ],
)
def test_no_torch_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    assert heavy_imports(arguments) == ([], "")


def heavy_imports(arguments: list[str]) -> tuple[list[str], str]:
    """Which of the heavy libraries a command imports, and what else it prints on standard error."""
    code = (
        f"import sys; sys.argv = ['saebench', *{arguments!r}]\n"
        "from saebench_recovery.cli import main\n"
        "try: main()\n"
        "except SystemExit:\n"
        "    print(*{'torch', 'transformers', 'sae_lens', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    refused = [line for line in done.stderr.splitlines() if not line.startswith("error: ")]
    return done.stdout.splitlines()[-1].split(), "\n".join(refused)


def test_a_repeated_complete_run_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Four tasks of the real target, as an earlier process left them."""
    plan = Plan.of(check_names(RunSpec()))
    assert len(plan.spec.tasks) == 4
    rows = [row(task, flags=(flag("no-gradient", "invalid"),)) for task in plan.spec.tasks]
    write_run(tmp_path / plan.identity, run_result(*rows, identity=plan.identity), [])
    before = [file.name for file in (tmp_path / plan.identity).iterdir()]
    for arguments in (["run", "--out", str(tmp_path)], ["show", str(tmp_path / plan.identity)]):
        assert heavy_imports(arguments) == ([], "")
    assert [file.name for file in (tmp_path / plan.identity).iterdir()] == before


@pytest.mark.parametrize("signal", [Signals.SIGTERM, Signals.SIGINT])
def test_a_signal_ends_in_one_line_and_the_same_command_goes_on(
    signal: Signals, tmp_path: Path
) -> None:
    code = (
        "import sys, time; from tests.fake_engine import Engine\n"
        "from saebench_recovery.cli import main, progress\n"
        "progress.EVERY = 600\n"
        "def before(task, number):\n"
        "    if number == 2: print('ready', flush=True); time.sleep(60)\n"
        "Engine(before).install(lambda mapping, key, value: mapping.update({key: value}))\n"
        f"sys.argv = ['saebench', 'run', '--out', {str(tmp_path)!r}]; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (128 + signal, "")
    assert re.fullmatch(r"stopped: 50 flips are kept in '.*'; the same command goes on .*\n", err)


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saebench_recovery", "run", "--defense", "clmp"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown defense 'clmp'; did you mean 'clamp'?")


def test_run_prints_a_table_and_the_path(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert saebench(monkeypatch, "run", "--out", str(tmp_path)) == 0
    first = capsys.readouterr()
    for words in (*TASKS, "clamp against orthogonal", "recovery", ".80 [.71 .87]"):
        assert words in first.out
    assert first.err == ""  # no progress bar where nobody looks
    assert Path(first.out.splitlines()[-1]).name == RESULT

    assert saebench(monkeypatch, "run", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out == first.out
    assert engine.evaluated == list(TASKS)

    (folder,) = tmp_path.iterdir()
    assert saebench(monkeypatch, "show", str(folder)) == 0
    assert capsys.readouterr().out in first.out


def test_json_prints_only_the_path(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert saebench(monkeypatch, "run", "--json", "--out", str(tmp_path)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert read_result(Path(line)).status == "complete"


def test_several_seeds_show_their_spread(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert saebench(monkeypatch, "run", "--seeds", "3", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    results = [read_result(Path(line)) for line in printed.splitlines()[-3:]]
    assert [result.spec["seed"] for result in results] == [0, 1, 2]
    assert "smallest to largest over seeds 0, 1, 2" in printed
    assert "0.80 to 0.80 (0.000)" in printed  # the stand-in does the same with every seed
    assert saebench(monkeypatch, "run", "--seeds", "2", "--seed", "0", "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err == "error: give --seed or --seeds, not both\n"


@pytest.mark.usefixtures("made_up_runs")
def test_flags_are_explained(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert saebench(monkeypatch, "run", "--json", "--out", str(tmp_path)) == 0
    path = Path(capsys.readouterr().out.strip())
    result = read_result(path)
    flagged = result.rows[0].model_copy(update={"flags": (flag("no-gradient", "invalid"),)})
    path.write_text(result.model_copy(update={"rows": (flagged,)}).model_dump_json())
    assert saebench(monkeypatch, "show", str(path)) == 0
    assert "no-gradient (invalid, alpha): no-gradient is so; mend it" in capsys.readouterr().out


def test_every_option_may_come_from_the_environment(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    environment = {
        "OUT": str(tmp_path),
        "DEFENSE": "ablation",
        "ATTACK": "unconstrained",
        "TASK": "alpha gamma",
        "THREAT_MODEL": "post",
        "BUDGET": "0.5",
        "SEED": "3",
        "LIMIT": "9",
        "BATCH_SIZE": "4",
        "DEFENSE_SETTINGS": "latents=5",
        "MAX_DRIFT": "0.1",
        "JSON": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"SAEBENCH_{name}", value)
    assert saebench(monkeypatch, "run") == 0
    spec = read_result(Path(capsys.readouterr().out.strip())).spec
    said = {
        "defense": "ablation",
        "attack": "unconstrained",
        "tasks": ["alpha", "gamma"],
        "threat_model": "post",
        "budget": 0.5,
        "seed": 3,
        "limit": 9,
        "batch_size": 4,
        "defense_config": {"latents": 5},
    }
    assert {key: spec[key] for key in said} == said
    assert spec["limits"]["drift"] == 0.1


def test_every_option_has_an_environment_variable() -> None:
    help_text = CliRunner().invoke(app, ["run", "--help"]).stdout
    options = [line for line in help_text.splitlines() if line.startswith("  -")]
    assert help_text.count("SAEBENCH_") == len(options) - 1  # all but --help


def test_published_command_repeats_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """One through the whole verb; `tests/test_spec.py` tries any."""
    executed: list[RunSpec] = []

    def catch(spec: RunSpec, *rest: Any, **more: Any) -> None:
        executed.append(spec)
        raise SystemExit(0)

    spec = RunSpec(
        tasks=("alpha", "beta"),
        limits=Limits(fidelity=0.4),
        defense_config={"site": "blocks.0.hook_resid_post", "value": [1.5, None, "it's"]},
        attack_config={"text": "3", "flag": True},
    )
    monkeypatch.setattr("saebench_recovery.runs.run.execute", catch)
    program, *arguments = shlex.split(command(spec))
    assert program == "saebench"
    assert saebench(monkeypatch, *arguments) == 0
    assert executed == [spec]


def test_list_shows_names_and_descriptions(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for what, name in (("defenses", "clamp"), ("attacks", "orthogonal"), ("tasks", "ioi")):
        assert saebench(monkeypatch, "list", what) == 0
        assert name in capsys.readouterr().out
    assert saebench(monkeypatch, "list", "targets") == 0
    assert "organism" in capsys.readouterr().out


def test_schema_describes_what_is_written(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert saebench(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["schema_version"] == SCHEMA_VERSION
    assert saebench(monkeypatch, "run", "--json", "--out", str(tmp_path)) == 0
    written = json.loads(Path(capsys.readouterr().out.strip()).read_text())
    described = schema["$defs"]
    assert set(written) == set(described["RunResult"]["properties"])
    assert set(written["rows"][0]) == set(described["Row"]["properties"])
    assert {"Leaderboard", "Record", "RunState", "StoredChunk"} <= set(described)
    assert set(schema["measures"]) == set(written["rows"][0]["measures"])
    assert schema["flags"]["no-gradient"]["level"] == "invalid"


def test_leaderboard_writes_and_names_its_files(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for defense in ("clamp", "ablation"):
        assert (
            saebench(monkeypatch, "run", "--out", str(tmp_path / "runs"), "--defense", defense) == 0
        )
    capsys.readouterr()
    runs = [str(run) for run in (tmp_path / "runs").iterdir()]
    assert saebench(monkeypatch, "leaderboard", *runs, "--out", str(tmp_path / "boards")) == 0
    paths = capsys.readouterr().out.splitlines()
    assert [Path(path).name for path in paths] == [
        *(f"organism-{task}.json" for task in TASKS),
        "organism.md",
        *(f"organism-{task}.csv" for task in TASKS),
    ]
    assert json.loads(Path(paths[0]).read_text())["groups"][0]["defenses"][0]["rank"] == 1


def test_traceback_only_for_our_own_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str], **_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        main()
