"""What a plugin reads beside its code is in a run's identity, or the row says that it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saebench_recovery import check, run
from saebench_recovery.runs.verify.verify import verify
from saebench_recovery.schema import RunResult

HEAD = """
import json
from pathlib import Path
import torch
from saebench_recovery import register_defense
from saebench_recovery.base.reading import read_json
from saebench_recovery.interfaces import Defense

FILE = Path(__file__).parent / "strength.json"
{at_import}

@register_defense({name!r})
class Beside(Defense):
    {named}

    def __init__(self, config=None):
        super().__init__(config)
        {at_construction}

    def fit(self, target, task):
        super().fit(target, task)
        {at_fit}

    def intervene(self, site, resid_BTD):
        {at_call}
        latents = self.latents[site]
        z_BTS = latents.read(resid_BTD)
        return latents.write(resid_BTD, torch.where(z_BTS > 0, self.factor - 1, 0.0) * z_BTS)
"""
READ = "self.factor = json.loads(FILE.read_text())"
PLACES = {
    "at_import": "FACTOR = json.loads(FILE.read_text())",
    "at_construction": READ,
    "at_fit": READ,
    "at_call": READ,
    "at_fit of ours": "self.factor = read_json(FILE)",
}
FLAG = "reads-other-files"


def written(folder: Path, name: str, place: str, read: str, *, named: bool = False) -> Path:
    """A plugin's file that reads another one in some place."""
    parts = dict.fromkeys(("at_import", "at_construction", "at_fit", "at_call"), "pass")
    parts["at_construction"] = "self.factor = -2.0"
    if place == "at_import":
        parts["at_construction"] = "self.factor = FACTOR"
    parts[place] = read
    (folder / "strength.json").write_text("-2.0")
    file = folder / "plugin.py"
    data = "data_files = (FILE,)" if named else "pass"
    file.write_text(HEAD.format(name=name, named=data, **parts))
    return file


def rows(file: Path, name: str, out: Path) -> RunResult:
    steps = {"steps": 2}
    return run(defense=name, tasks=["ioi"], plugins=[file], out=out, attack_config=steps, limit=2)


@pytest.mark.parametrize("place", PLACES)
def test_a_row_says_that_its_defense_reads_another_file(place: str, tmp_path: Path) -> None:
    name = f"beside-{place.replace(' ', '-')}"
    file = written(tmp_path, name, place.partition(" ")[0], PLACES[place])
    result = rows(file, name, tmp_path / "out")
    (flag,) = [flag for flag in result.rows[0].flags if flag.name == FLAG]
    assert flag.level == "caution"
    assert "'strength.json'" in flag.sentence
    assert str(tmp_path) not in flag.sentence  # rows are sent to others
    assert verify(tmp_path / "out" / result.identity).holds
    found = check(defense=name, tasks=["ioi"], limit=4)
    assert FLAG in [one.name for one in found["ioi"]]


def test_a_file_that_it_names_is_in_the_identity(tmp_path: Path) -> None:
    name = "beside-named"
    file = written(tmp_path, name, "at_fit", READ, named=True)
    result = rows(file, name, tmp_path / "out")
    assert FLAG not in result.rows[0].flag_names
    (tmp_path / "strength.json").write_text(json.dumps(-1.0))
    assert rows(file, name, tmp_path / "out").identity != result.identity


def test_what_the_harness_reads_for_a_plugin_is_not_its_own(tmp_path: Path) -> None:
    """Nor is a file that it makes itself, or one that is not there."""
    name = "beside-nothing"
    looks = "import zipfile; zipfile.is_zipfile(FILE.parent / 'none')"
    makes = "import tempfile; tempfile.TemporaryFile('w+'); (FILE.parent / 'log').write_text('')"
    file = written(tmp_path, name, "at_fit", f"{looks}; {makes}")
    assert FLAG not in rows(file, name, tmp_path / "out").rows[0].flag_names
