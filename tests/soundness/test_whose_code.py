"""Code of others is watched, whatever it says of itself; the package's own is not."""

from __future__ import annotations

from pathlib import Path

from saebench_recovery.attacks.orthogonal import Orthogonal
from saebench_recovery.defenses.clamp import Clamp

from saebench_recovery import registry
from saebench_recovery.scoring.integrity import others_at_hand


class Posing(Clamp):
    """A class that claims to be a built-in one."""


Posing.__module__, Posing.name = Clamp.__module__, Clamp.name


def test_what_is_built_in_is_not_watched() -> None:
    assert not others_at_hand(Clamp(), Orthogonal())


def test_a_class_that_claims_to_be_built_in_is_watched() -> None:
    assert others_at_hand(Posing(), Orthogonal())


def test_all_is_watched_where_a_file_of_others_was_imported(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("looked_at = True\n")
    registry.load_plugin_file(file)
    assert others_at_hand(Clamp(), Orthogonal())
