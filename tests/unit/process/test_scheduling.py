"""Which core a worker runs on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from coupon_service.process.scheduling import core_for

CORES = sorted(os.sched_getaffinity(0))


def test_each_worker_has_a_core_of_its_own_when_there_are_as_many() -> None:
    taken: list[int | None] = []
    for _ in CORES:
        taken.append(core_for(len(CORES), taken))
    assert sorted(it for it in taken if it is not None) == CORES


def test_a_worker_gets_the_core_of_the_one_it_replaces() -> None:
    remaining = CORES[1:]
    assert core_for(len(CORES), remaining) == CORES[0]


@pytest.mark.parametrize("workers", [len(CORES) - 1, len(CORES) + 1])
def test_otherwise_the_system_chooses(workers: int) -> None:
    assert core_for(workers, []) is None


def test_threads_that_are_made_later_stay_on_the_core_and_give_way() -> None:
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
def test_other_threads_give_way_to_this_one_where_they_share_a_core(
    cores: list[int], nice: int
) -> None:
    program = f"""
import os, threading
from coupon_service.process.scheduling import hold_back_other_threads
os.sched_setaffinity(0, {cores})
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
before = os.getpriority(os.PRIO_PROCESS, 0)
hold_back_other_threads()
print(os.getpriority(os.PRIO_PROCESS, thread.native_id) == min(before + {nice}, 19))
print(os.getpriority(os.PRIO_PROCESS, 0) == before)
done.set()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]
