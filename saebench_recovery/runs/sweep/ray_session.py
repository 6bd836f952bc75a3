"""The Ray cluster of a sweep: one that runs already, or one on this machine alone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

# Before Ray is imported: it would give workers an environment of their own under `uv run`, and
# report to its makers that it is used.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.reading import reason

STORE = 100 * 2**20  # bytes of the object store of a local cluster, which holds nothing but plans
STARTS = 3  # a local cluster has 30 seconds to start, which on a busy machine are not enough
PATIENCE = 5.0  # seconds for a cluster to answer at all


@contextmanager
def session(address: str | None) -> Iterator[None]:
    """Be connected to the cluster at an address, or to a new one that ends with the sweep.

    A connection that is there already is used as it is.

    Raises:
        UserError: there is no cluster at the address, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE}
    else:
        _check_answers(address)
    for left in reversed(range(STARTS if address is None else 1)):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            break
        except Exception as error:  # Ray raises whatever its parts do
            ray.shutdown()
            if not left:
                raise _unreached(address, reason(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def room(gpu_share: float | None, jobs: int | None) -> tuple[int, float]:
    """How many workers the cluster has room for, and the share of a GPU that each gets.

    Without `gpu_share` a worker gets a whole GPU, or a core where the cluster has no GPU.

    Raises:
        UserError: there is room for none.
    """
    has = ray.cluster_resources()
    cores, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    share = (1.0 if gpus else 0.0) if gpu_share is None else gpu_share
    places = min(cores, gpus / share + 1e-6) if share else cores
    if places < 1:
        what = f"{cores:g} cores and {gpus:g} GPUs"
        raise UserError(f"the cluster has {what}: no room for a worker with {share:g} of a GPU")
    return jobs or int(places), share


def _check_answers(address: str) -> None:
    """Ask the port before Ray does, which takes half a minute and many lines to give up."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise _unreached(address, reason(error)) from None


def _unreached(address: str | None, why: str) -> UserError:
    where = "on this machine" if address is None else f"at {address!r}"
    return UserError(f"no Ray cluster {where}: {why}")
