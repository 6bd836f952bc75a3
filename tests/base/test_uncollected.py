"""Work without the collector of circles, which is on again afterwards."""

from __future__ import annotations

import gc

import pytest

from saebench_recovery.base.uncollected import uncollected


@uncollected()
def _asked() -> bool:
    return gc.isenabled()


def test_the_collector_rests_meanwhile() -> None:
    assert gc.isenabled()
    assert not _asked()
    assert gc.isenabled()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def test_inside_other_such_work_it_goes_on_resting() -> None:
    with uncollected():
        _asked()
        assert not gc.isenabled()
