"""Code of others is watched, whatever it says of itself; the package's own is not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery import registry
from saebench_recovery.base.errors import UserError
from saebench_recovery.scoring import integrity
from saebench_recovery.scoring.integrity import others_at_hand
from saebench_recovery.scoring.setting import Setting
from tests.soundness.setting import clamp, orthogonal, run

HIDING = {
    "nothing": "looked_at = True",
    "its module's name": "import sys\ndel sys.modules[__name__]",
    "under another name": """
import sys
sys.modules["numpy.extra"] = sys.modules.pop(__name__)
__name__ = "numpy.extra"
""",
    "the record": """
from saebench_recovery import registry
registry._of_others = frozenset()
registry._plugin_files = {}
""",
    "a record of its own": """
from saebench_recovery import registry
class Deaf(frozenset):
    def __or__(self, other):
        return self
registry._of_others = Deaf()
""",
    "under a name of the package": """
from saebench_recovery import registry
from saebench_recovery.defenses.clamp import Clamp
Fake = type("Clamp", (Clamp,), {"__module__": Clamp.__module__, "__qualname__": "Clamp"})
registry.register_defense("clamp")(Fake)
registry._registered["defense"]["clamp"] = Clamp
""",
    "with an error": "raise ValueError(1)",
}


class Posing(Clamp):
    """A class that claims to be a built-in one."""


Posing.__module__, Posing.__qualname__, Posing.name = Clamp.__module__, "Clamp", Clamp.name


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file hides, and its tracks in the registry, are undone after each test."""
    monkeypatch.setattr(registry, "_of_others", frozenset())
    monkeypatch.setattr(registry, "_plugin_files", {})
    monkeypatch.setitem(registry._registered["defense"], "clamp", Clamp)


def test_what_is_built_in_is_not_watched() -> None:
    assert not others_at_hand(Clamp(), Orthogonal())


def test_a_class_that_claims_to_be_built_in_is_watched() -> None:
    assert others_at_hand(Posing(), Orthogonal())


def test_a_class_that_is_registered_in_the_place_of_a_built_in_one_is_watched() -> None:
    registry.register_defense("clamp")(Posing)
    assert others_at_hand(Posing(), Orthogonal())
    assert others_at_hand(Clamp(), Orthogonal())


@pytest.mark.parametrize("hidden", HIDING)
def test_a_file_of_others_cannot_hide(tmp_path: Path, hidden: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HIDING[hidden])
    with pytest.raises(UserError) if "error" in hidden else nullcontext():
        registry.load_plugin_file(file)
    assert others_at_hand(Clamp(), Orthogonal())


@pytest.mark.parametrize(
    ("place", "name"),
    [(integrity, "others_at_hand"), (integrity, "code_of_others"), (Setting, "watched")],
)
def test_who_replaces_the_watch_is_named(
    monkeypatch: pytest.MonkeyPatch, place: object, name: str
) -> None:
    monkeypatch.setattr(place, name, lambda *plugins: frozenset())
    assert "judge-replaced" in run(clamp(), orthogonal()).row.flag_names
