"""Several worker processes behind one port: started, watched, replaced, and stopped together.

The workers share the port by SO_REUSEPORT and nothing else. The supervisor serves the metrics of
all of them. gRPC objects are only made in the workers, after the processes are.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import tempfile
from contextlib import ExitStack
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from coupon_service.settings import Settings

if TYPE_CHECKING:
    from coupon_service.collectors import WorkerCounts, Workers

RESTART_DELAY_S: Final = 0.1
"""Before a worker that died is replaced; doubles while it dies young, up to RESTART_DELAY_MAX_S."""

RESTART_DELAY_MAX_S: Final = 5.0

YOUNG_S: Final = 10.0
"""A worker that dies before this age has probably not even started."""

STOP_MARGIN_S: Final = 5.0
"""What a worker gets beyond its drain and shutdown times before it is killed."""


class SupervisorError(Exception):
    """The service cannot start; one clear sentence."""


class Supervisor:
    """Keeps `settings.workers` workers running until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        # One byte a worker: whether it is ready to serve.
        self._ready: Any = self._context.Array("b", settings.workers, lock=False)
        self._workers: dict[int, SpawnProcess] = {}
        self._restarts = 0
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger("coupon_service.supervisor")

    async def run(self) -> None:
        """Returns when all workers have ended. Raises SupervisorError when it cannot start."""
        # Only now, since prometheus_client looks for its folder when it is imported.
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coupon-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            from coupon_service.collectors import WorkerCounts, service_registry  # noqa: PLC0415
            from coupon_service.metrics import MetricsServerError, serve_metrics  # noqa: PLC0415

            counts = WorkerCounts(Path(folder))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopping.set)
            reserved = stack.enter_context(reserve_port(self._settings.host, self._settings.port))
            port = reserved.getsockname()[1]
            settings = self._settings.model_copy(update={"port": port})
            try:
                metrics = stack.enter_context(
                    serve_metrics(
                        settings.metrics_host,
                        settings.metrics_port,
                        service_registry(counts, Path(folder), self._counted),
                        lambda: any(self._ready),
                    )
                )
            except MetricsServerError as error:
                raise SupervisorError(str(error)) from error
            self._log.info(
                "starting", port=port, workers=settings.workers, metrics_port=metrics.port
            )
            await asyncio.gather(
                *(self._keep(slot, settings, counts) for slot in range(settings.workers))
            )
            self._log.info("stopped")

    def _counted(self) -> Workers:
        """The workers, for the metrics. Called from other threads."""
        from coupon_service.collectors import Workers  # noqa: PLC0415

        running = {it.name: it.pid for it in list(self._workers.values()) if it.pid is not None}
        return Workers(self._settings.workers, sum(self._ready), self._restarts, running)

    async def _keep(self, slot: int, settings: Settings, counts: WorkerCounts) -> None:
        """Keeps one worker running."""
        loop = asyncio.get_running_loop()
        delay_s = RESTART_DELAY_S
        while not self._stopping.is_set():
            started = loop.time()
            worker = self._context.Process(
                target=run_worker, args=(settings, slot, self._ready), name=f"worker-{slot}"
            )
            worker.start()
            self._workers[slot] = worker
            await self._end_of(worker)
            self._ready[slot] = False
            del self._workers[slot]
            if worker.pid is not None:
                counts.worker_ended(worker.pid)
            if self._stopping.is_set():
                return
            self._restarts += 1
            self._log.error("worker died", worker=slot, pid=worker.pid, exit_code=worker.exitcode)
            young = loop.time() - started < YOUNG_S
            delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S) if young else RESTART_DELAY_S
            await self._stopping_within(delay_s)

    async def _end_of(self, worker: SpawnProcess) -> None:
        """Returns when the worker has ended, and ends it when the supervisor is to stop."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(worker.sentinel, ended.set)
        end = asyncio.ensure_future(ended.wait())
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({end, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.is_set():
                worker.terminate()
                settings = self._settings
                patience_s = (settings.drain_grace_ms + settings.shutdown_timeout_ms) / 1000
                await asyncio.wait({end}, timeout=patience_s + STOP_MARGIN_S)
                if not ended.is_set():
                    self._log.error("worker does not stop and is killed", pid=worker.pid)
                    worker.kill()
                    await end
        finally:
            loop.remove_reader(worker.sentinel)
            stop.cancel()
        worker.join()

    async def _stopping_within(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that keeps the port, 0 for a free one, without taking connections.

    Raises SupervisorError when somebody listens there: gRPC would not notice, since its ports can
    be shared, and two services would take turns.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        raise SupervisorError(
            f"The service cannot listen on {host} port {port}: {error.strerror}."
            " COUPON_HOST and COUPON_PORT say where it listens."
        ) from error
    return reserved


def run_worker(settings: Settings, slot: int, ready: Any) -> None:
    """The main function of a worker process."""
    import uvloop  # noqa: PLC0415

    from coupon_service.log import configure_logging  # noqa: PLC0415
    from coupon_service.server import work  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but we wait to be told
    configure_logging(settings.log_level, settings.log_format)

    def readiness_changed(serving: bool) -> None:
        ready[slot] = serving

    parent = multiprocessing.parent_process()
    orphaned = parent.sentinel if parent is not None else None
    uvloop.run(work(settings, readiness_changed, orphaned))
