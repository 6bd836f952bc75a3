"""`saebench schema`: the formats of all that is written, for programs that read it."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON schema of all that is written, and what measures and flags mean.

    \b
    Example:
      saebench schema > schema.json
    """
    import json

    from pydantic.json_schema import models_json_schema

    from saebench_recovery.results.leaderboard import Leaderboard
    from saebench_recovery.results.published import PublishedEntry
    from saebench_recovery.schema import (
        SCHEMA_VERSION,
        Record,
        RunResult,
        RunState,
        StoredChunk,
        StoredFailure,
        Texts,
    )
    from saebench_recovery.scoring.flags import CONDITIONS
    from saebench_recovery.scoring.measures import MEASURES

    models = (
        *(RunResult, RunState, StoredChunk, StoredFailure, Record, Texts),
        *(Leaderboard, PublishedEntry),
    )
    _, definitions = models_json_schema([(model, "serialization") for model in models])
    measures = {
        m.name: {"kind": m.kind, "unit": m.unit, "description": m.description} for m in MEASURES
    }
    flags = {
        c.name: {"level": c.level, "sentence": c.sentence, "remedy": c.remedy} for c in CONDITIONS
    }
    contents = {"schema_version": SCHEMA_VERSION, "measures": measures, "flags": flags}
    print(json.dumps({**contents, **definitions}, indent=1))
