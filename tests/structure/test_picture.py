"""The picture of the rooms shows the imports that there are."""

from __future__ import annotations

import subprocess
import sys

from tests.structure.source import ROOT


def test_the_picture_is_up_to_date() -> None:
    command = [sys.executable, "-m", "docs.architecture", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
