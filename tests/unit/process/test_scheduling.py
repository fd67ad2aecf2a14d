"""CPU affinity of workers and priorities of their threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from coupon_service.process.scheduling import core_for

CORES = sorted(os.sched_getaffinity(0))


def test_each_worker_gets_its_own_core_with_as_many_cores() -> None:
    taken: list[int | None] = []
    for _ in CORES:
        taken.append(core_for(len(CORES), taken))
    assert sorted(it for it in taken if it is not None) == CORES


def test_replacement_gets_the_core_of_the_old_worker() -> None:
    remaining = CORES[1:]
    assert core_for(len(CORES), remaining) == CORES[0]


@pytest.mark.parametrize("workers", [len(CORES) - 1, len(CORES) + 1])
def test_no_core_with_more_or_fewer_workers_than_cores(workers: int) -> None:
    assert core_for(workers, []) is None


def test_later_threads_inherit_core_and_policy() -> None:
    program = f"""
import os, threading
from coupon_service.process.scheduling import run_on
run_on({CORES[-1]})
thread = threading.Thread(
    target=lambda: print(os.sched_getaffinity(0), os.sched_getscheduler(0) == os.SCHED_BATCH)
)
thread.start()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{{{CORES[-1]}}} True"


@pytest.mark.parametrize(("cores", "nice"), [(CORES[:1], 10), (CORES[:2], 0)])
def test_other_threads_get_a_lower_priority_on_a_shared_core(cores: list[int], nice: int) -> None:
    program = f"""
import os, threading
from coupon_service.process.scheduling import lower_other_threads
os.sched_setaffinity(0, {cores})
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
before = os.getpriority(os.PRIO_PROCESS, 0)
lower_other_threads()
print(os.getpriority(os.PRIO_PROCESS, thread.native_id) == min(before + {nice}, 19))
print(os.getpriority(os.PRIO_PROCESS, 0) == before)
done.set()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]
