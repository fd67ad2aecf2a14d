"""A worker process: it serves until it is stopped or fails."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from coupon_service.process.scheduling import lower_other_threads
from coupon_service.server import Server, ServerError
from coupon_service.settings import Settings, SettingsError
from coupon_service.telemetry.readiness import Readiness
from coupon_service.telemetry.replica_gauges import FILE_NAME, ReplicaGauges

KEPT_KEYS = "published-keys.json"


async def work(
    settings: Settings,
    read_settings: Callable[[], Settings],
    readiness_changed: Callable[[Readiness, Sequence[Readiness]], None],
    orphaned: int | None,
) -> None:
    """Run one of several workers until SIGTERM, or until the supervisor has died.

    SIGUSR2 means that another worker has replaced it. On SIGHUP it reloads from `read_settings`.
    `orphaned`: a descriptor that becomes readable when the supervisor, which serves the metrics,
    dies. Raises ServerError when it cannot start or continue.
    """
    loop = asyncio.get_running_loop()
    stopped, replaced = asyncio.Event(), asyncio.Event()
    shared = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    server = Server(
        settings,
        CollectorRegistry(),
        readiness_changed=readiness_changed,
        gauges=ReplicaGauges(shared / FILE_NAME),
        kept_keys=shared / KEPT_KEYS,
    )

    def reload() -> None:
        try:
            server.reload(read_settings())
        except SettingsError:
            return  # the supervisor has logged it

    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGUSR2, replaced.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # blocked until now, and may be pending
    if orphaned is not None:
        loop.add_reader(orphaned, stopped.set)
    await server.start()
    lower_other_threads()
    try:
        await _until_stopped(server, stopped, replaced)
    finally:
        if orphaned is not None:
            loop.remove_reader(orphaned)


async def _until_stopped(server: Server, stopped: asyncio.Event, replaced: asyncio.Event) -> None:
    """Stop the server on a signal, or when it failed. Raises ServerError then."""
    # Frozen objects are never scanned: those that exist by now live as long as the process. Each
    # RPC leaves six objects of grpc.aio (1.85) in reference cycles, which only the collector frees.
    # Those of RPCs in flight during a collection are promoted, and freed when the oldest generation
    # is scanned: at every hundredth collection, since it holds little.
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
