"""What plugins read beside their code: it decides figures, and a run's identity must follow it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saebench_recovery.base.files_read import files_read
from saebench_recovery.interfaces import Plugin
from saebench_recovery.schema import Finding
from saebench_recovery.scoring.check.catalogue import finding
from saebench_recovery.scoring.integrity import is_ours


def other_files(*plugins: Plugin) -> Iterator[Finding]:
    """A finding for each plugin of others that has read a file which it does not name."""
    for plugin in plugins:
        if is_ours(plugin):
            continue
        named = {Path(file).resolve() for file in type(plugin).data_files}
        read = map(Path, files_read(cls.__module__ for cls in type(plugin).__mro__))
        names = sorted(file.name for file in read if file.resolve() not in named)
        if names:  # without its place, which is this machine's
            words = f"{plugin.title} reads {names[0]!r}, which no identity of a run follows"
            yield finding("reads-other-files", words)
