"""CPU affinity of workers, and priorities of their threads.

One thread of a worker runs the event loop. The others are gRPC's, and wake it and each other
several times for each call. Pinned to one core they take turns instead of migrating between cores,
and SCHED_BATCH (sched(7)) keeps them from preempting other processes.

The thread that polls gRPC's completion queue gets a lower priority than the event loop, which it
would otherwise preempt for events that the loop itself has caused. So it runs when the loop is idle
or has used its time slice, and takes many events at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Final

POLLING_NICE: Final = 10
"""Added to the nice value of the threads that only poll."""


def core_for(workers: int, taken: Collection[int | None]) -> int | None:
    """The core for the next worker: the one with the fewest workers in `taken`.

    None where the scheduler of the system decides: with more or fewer `workers` than cores that
    this process may use, and on systems without affinity.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != workers:
        return None
    return min(cores, key=lambda core: sum(it == core for it in taken))


def run_on(core: int | None) -> None:
    """Pin this process and its future threads to `core`, if any, under SCHED_BATCH.

    Has no effect where the system refuses.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if core is not None:
        with suppress(OSError):
            os.sched_setaffinity(0, {core})


def lower_other_threads() -> None:
    """Lower the priority of the other Python threads, where all of them share one core."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) > 1:
        return
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + POLLING_NICE
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.native_id is not None:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread.native_id, nice)
