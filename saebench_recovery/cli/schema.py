"""`saebench schema`: the formats of all that is written, for programs that read it."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON schema of all that is written.

    \b
    Example:
      saebench schema > schema.json
    """
    import json

    from pydantic.json_schema import models_json_schema

    from saebench_recovery.results.leaderboard import Leaderboard
    from saebench_recovery.schema import SCHEMA_VERSION, ExampleRow, RunResult, Texts

    models = (RunResult, ExampleRow, Texts, Leaderboard)
    _, definitions = models_json_schema([(model, "serialization") for model in models])
    print(json.dumps({"schema_version": SCHEMA_VERSION, **definitions}, indent=1))
