"""What is written to disk, as frozen pydantic models."""

from saebench_recovery.schema.row import *  # noqa
