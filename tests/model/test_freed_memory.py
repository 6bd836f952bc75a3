"""Tensors that come and go leave their memory to the next ones."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

ROUNDS, NUMBERS = 50, 2**20
SCRIPT = f"""
import resource
import torch
from saebench_recovery.model.freed_memory import keep_freed_memory

torch.set_num_threads(1)


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        torch.ones({NUMBERS}).add(1).mul(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that learns")
def test_what_a_tensor_leaves_is_not_cleared_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    pages_of_a_round = 3 * 4 * NUMBERS // resource.getpagesize()
    assert int(done.stdout) < pages_of_a_round
