"""Which processor core a worker runs on, and which of its threads gives way.

A worker is several threads, of which one runs the event loop and the others, gRPC's, wake it and
each other several times a call. On a core of its own they take turns instead of chasing each other
over all cores, and SCHED_BATCH (sched(7)) keeps other processes from being pushed aside. Under full
load, in 8 noisy rounds on two cores shared with PostgreSQL and the clients, RedeemCode took 11 %
less processor time with both, LockCode 13 %; each alone brought little.

The thread that polls gRPC's queue is made to wait for the event loop as well: it pushed the loop
aside at each of five events a call, which the loop itself had caused. With less priority it runs
when the loop has nothing left to do, or has had its time, and takes many events at once. In 13
rounds RedeemCode took another 9 % less (the event loop was pushed aside 0.8 times a call instead
of 5.3), at the same or shorter latencies. A nice of 5 did half of that, 14 and 19 no more.
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
    this process may use, and where the system does not tell.
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
