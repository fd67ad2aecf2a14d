"""Which processor core a worker runs on, and which of its threads gives way.

A worker is several threads, of which one runs the event loop and the others, gRPC's, wake it and
each other several times a call. On a core of its own they take turns instead of migrating over all
cores, and SCHED_BATCH (sched(7)) keeps them from pre-empting other processes.

The thread that polls gRPC's queue gives way to the event loop as well, which it would pre-empt for
events that the loop itself has caused. With a lower priority it runs when the loop is idle, or has
had its time slice, and takes many events at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Final

POLLING_NICE: Final = 10
"""By how much the priority of the threads that only poll is lowered."""


def core_for(workers: int, taken: Collection[int | None]) -> int | None:
    """A core for the next worker, the one that the fewest have `taken`.

    None where a worker is better left to the system: with more or fewer `workers` than cores that
    this process may use, and where the system does not say.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != workers:
        return None
    return min(cores, key=lambda core: sum(it == core for it in taken))


def run_on(core: int | None) -> None:
    """Puts this process, and the threads it will make, on this core, if any, as SCHED_BATCH.

    A system that refuses leaves it as it is.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if core is not None:
        with suppress(OSError):
            os.sched_setaffinity(0, {core})


def hold_back_other_threads() -> None:
    """Lets the Python threads that there are give way to this one, where they share one core."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) > 1:
        return
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + POLLING_NICE
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.native_id is not None:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread.native_id, nice)
