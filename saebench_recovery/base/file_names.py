"""Names of files for what others name: short, plain, and never the same for two things."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saebench_recovery.base.hashing import hash_text
from saebench_recovery.base.settings import canonical_json

LONGEST = 60  # characters of a file's name, without hash and ending


def slug(parts: Sequence[str]) -> str:
    """The parts with dashes between, and underscores for all but letters, digits, dots, dashes."""
    return "-".join(re.sub(r"[^\w.-]+", "_", part, flags=re.ASCII) for part in parts)


def hashed_name(parts: Sequence[str], of: Any) -> str:
    """A short slug of the parts, and a hash of all that tells the file from others."""
    return f"{slug(parts)[:LONGEST].lower()}-{hash_text(canonical_json(of))[:12]}"
