"""What a worker process does: serves until it is stopped, or cannot go on."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from coupon_service.process.scheduling import hold_back_other_threads
from coupon_service.server import Server, ServerError
from coupon_service.settings import Settings, SettingsError
from coupon_service.telemetry.readiness import Readiness
from coupon_service.telemetry.replica_gauges import FILE_NAME, ReplicaGauges


async def work(
    settings: Settings,
    read_settings: Callable[[], Settings],
    readiness_changed: Callable[[Readiness], None],
    orphaned: int | None,
) -> None:
    """Runs one of several workers until SIGTERM, or until the supervisor is gone.

    SIGUSR2 says that another worker has taken over; at SIGHUP it reloads from `read_settings`.
    `orphaned`: a descriptor that becomes readable when the supervisor, which serves the metrics, is
    gone. Raises ServerError when it cannot start or go on.
    """
    loop = asyncio.get_running_loop()
    stopped, replaced = asyncio.Event(), asyncio.Event()
    gauges = ReplicaGauges(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / FILE_NAME)
    server = Server(
        settings, CollectorRegistry(), readiness_changed=readiness_changed, gauges=gauges
    )

    def reload() -> None:
        try:
            server.reload(read_settings())
        except SettingsError:
            return  # the supervisor logs it

    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGUSR2, replaced.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # they may have come before
    if orphaned is not None:
        loop.add_reader(orphaned, stopped.set)
    await server.start()
    hold_back_other_threads()
    try:
        await _until_stopped(server, stopped, replaced)
    finally:
        if orphaned is not None:
            loop.remove_reader(orphaned)


async def _until_stopped(server: Server, stopped: asyncio.Event, replaced: asyncio.Event) -> None:
    """Stops the server at a signal, or when it failed. Raises ServerError then."""
    # What has been made so far stays. An RPC leaves six objects of grpc.aio (1.85) that only the
    # collector can free. Those of RPCs that it found open grow old, and go when it visits the old
    # objects as well: every hundredth time, since there are few. So it holds up calls for a
    # millisecond or two, after some 1,700 of them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    events = (stopped, replaced, server.failed)
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await server.stop(replaced=replaced.is_set() and not stopped.is_set())
    if server.failed.is_set():
        raise ServerError("gRPC has closed its port.")
