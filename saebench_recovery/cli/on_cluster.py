"""`--engine ray`: where its results go, and the actors that carry cells out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_recovery.base.errors import UserError
from saebench_recovery.base.settings import nearest
from saebench_recovery.cli.options import place

if TYPE_CHECKING:
    from saebench_recovery.runs.sweep.destination import Destination
    from saebench_recovery.runs.sweep.engine import Engine, Orders

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster at an address, or a new one on this machine.

    Each worker gets a share of a GPU; None is a whole one where there are any.
    """

    address: str | None
    gpu_share: float | None


def cluster_of(engine: str, address: str | None, gpu_share: float | None) -> Cluster | None:
    """The cluster that the options ask for, None for processes of this machine.

    Raises:
        UserError: there is no such engine, or an option that only a cluster has.
    """
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; {nearest(engine, ENGINES)}")
    if engine == "ray":
        return Cluster(address, gpu_share)
    for option, value in (("--address", address), ("--gpu-share", gpu_share)):
        if value is not None:
            raise UserError(f"{option} is of a cluster: give --engine ray too")
    return None


def destination_of(out: str, cluster: Cluster | None) -> Destination:
    """Where results go: a folder, or from a cluster an address.

    Raises:
        UserError: an address is given without a cluster.
    """
    from saebench_recovery.runs.sweep.cell_worker import is_address
    from saebench_recovery.runs.sweep.destination import Folder

    if not is_address(out):
        return Folder(place(out))
    if cluster is None:
        raise UserError(f"--out {out!r} is an address: give --engine ray, or a folder")
    from saebench_recovery.runs.sweep.address import Address  # imports fsspec

    return Address(out)


@contextmanager
def actors(
    cluster: Cluster,
    destination: Destination,
    orders: Orders,
    jobs: int | None,
    prepare: Callable[[], None],
) -> Iterator[tuple[Engine, int]]:
    """The engine of a cluster, and how many cells it carries out at a time.

    Raises:
        UserError: Ray is not installed, the cluster does not answer or has no room, or results
            cannot be written.
    """
    try:
        from saebench_recovery.runs.sweep.ray_session import room, session
    except ModuleNotFoundError as missing:
        if missing.name != "ray":
            raise
        line = "--engine ray needs Ray: pip install 'saebench-recovery[ray]'"
        raise UserError(line) from None
    from saebench_recovery.runs.sweep.actors import Actors
    from saebench_recovery.runs.sweep.destination import opened

    with opened(destination), session(cluster.address):
        workers, share = room(cluster.gpu_share, jobs)
        yield Actors(orders, destination, workers, share, prepare), workers
