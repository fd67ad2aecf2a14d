"""The supervisor: starts worker processes behind one port, restarts, replaces and stops them.

The workers share the port by SO_REUSEPORT and nothing else. The supervisor serves the metrics of
all of them. They are forked from a fork server that has imported the code and created no objects of
gRPC, which do not survive a fork.

SIGTERM and SIGINT stop it, SIGHUP makes the workers reload, SIGUSR2 replaces them one by one.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from coupon_service.process.pid_file import PidFileError, holding
from coupon_service.process.scheduling import core_for, run_on
from coupon_service.security.tls import TlsError, read_certificate
from coupon_service.settings import Settings, SettingsError
from coupon_service.telemetry.logs import configure_logging
from coupon_service.telemetry.readiness import Readiness, is_serving, report

if TYPE_CHECKING:
    from coupon_service.telemetry.multiprocess import Workers

RESTART_DELAY_S: Final = 0.1
"""Delay before a dead worker is replaced; doubles while it dies young, to RESTART_DELAY_MAX_S."""

RESTART_DELAY_MAX_S: Final = 5.0

YOUNG_S: Final = 10.0
"""A worker that dies before this age has probably failed to start."""

STOP_MARGIN_S: Final = 5.0
"""Time beyond its drain and shutdown times after which a worker is killed."""

SERVE_TIMEOUT_S: Final = 30.0
"""Time for a replacement to start serving. After it the old workers stay."""

REPLACE_PAUSE_S: Final = 2.0
"""Pause between two replacements. A client whose call the stopping worker refused retries within
it, so that the retry does not meet the next stopping worker."""

KEPT: Final = ("host", "port", "workers", "metrics_host", "metrics_port", "pid_file", "data_dir")
"""Settings of the supervisor, which a restart of the workers does not change."""


class SupervisorError(Exception):
    """The service cannot start. The message is one sentence."""


class Worker:
    """One worker process."""

    def __init__(
        self,
        name: str,
        context: ForkServerContext,
        settings: Settings,
        read_settings: Callable[[], Settings],
        delay_s: float,
        core: int | None,
    ) -> None:
        """`delay_s`: the delay before it is replaced when it dies young. `core`: the core to pin it
        to, or None."""
        # Shared memory that the worker writes and the supervisor reads.
        self._readiness: Any = context.RawValue("I", 0)
        self._shards: Any = context.RawArray("I", settings.shards if settings.shards > 1 else 0)
        reported = self._readiness, self._shards
        self.process = context.Process(
            target=run_worker, args=(settings, read_settings, reported, core), name=name
        )
        self.core = core
        self.delay_s = delay_s
        self.retired = False
        """Whether its end is intended: then it is neither an error nor replaced."""
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._started_s = loop.time()
        with signals_blocked():
            self.process.start()
        loop.add_reader(self.process.sentinel, self._end)

    @property
    def readiness(self) -> Readiness:
        """The readiness that it reported last."""
        return Readiness(0) if self.ended.is_set() else Readiness(self._readiness.value)

    @property
    def shards(self) -> list[Readiness]:
        """What it reported last of each shard; empty where there is only one."""
        return list(map(Readiness, self._shards))

    @property
    def age_s(self) -> float:
        """Time since its start."""
        return asyncio.get_running_loop().time() - self._started_s

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if not self.ended.is_set() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.process.sentinel)
        self.process.join()
        self.ended.set()


class Supervisor:
    """Keeps `settings.workers` workers running until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, read_settings: Callable[[], Settings]) -> None:
        """`read_settings` reads them again. Workers call it as well."""
        self._settings = settings
        self._read_settings = read_settings
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._workers: list[Worker] = []
        self._restarting: asyncio.Task[None] | None = None
        self._deaths = 0
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger("coupon_service.process.supervisor")

    async def run(self) -> None:
        """Run until all workers have ended. Raises SupervisorError when it cannot start."""
        with ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="coupon-metrics-"))
            )
            # prometheus_client reads it at import, here and in the fork server.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder)
            # glibc gives each thread of gRPC a heap of its own. Their fragmentation makes the
            # memory of a worker grow as connections come and go.
            os.environ.setdefault("MALLOC_ARENA_MAX", "2")
            # Its start unblocks SIGTERM and SIGINT, and the fork server would start it below.
            resource_tracker.ensure_running()
            with signals_blocked():
                self._context.set_forkserver_preload(["coupon_service.process.worker"])
                forkserver.ensure_running()
            self._handle_signals()
            try:
                read_certificate(self._settings, lambda: datetime.now(UTC))
                if self._settings.pid_file is not None:
                    stack.enter_context(holding(self._settings.pid_file))
            except (PidFileError, TlsError) as error:
                raise SupervisorError(str(error)) from error
            self._open_ports(stack)
            async with asyncio.TaskGroup() as self._tasks:
                for _ in range(self._settings.workers):
                    self._start(RESTART_DELAY_S)
                await self._stopping.wait()
                if self._restarting is not None:
                    self._restarting.cancel()
                await asyncio.gather(*(self._end(it, signal.SIGTERM) for it in self._workers))
            self._log.info("stopped")

    def _counted(self) -> Workers:
        """The workers, for the metrics. Called in threads of the metrics server."""
        from coupon_service.telemetry.multiprocess import Workers  # noqa: PLC0415

        workers = [it for it in tuple(self._workers) if not it.ended.is_set()]
        serving = sum(bool(it.readiness & Readiness.SERVING) for it in workers)
        pids = {it.process.name: it.process.pid for it in workers if it.process.pid is not None}
        return Workers(self._settings.workers, serving, self._deaths, pids)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR2, self._restart)

    def _open_ports(self, stack: ExitStack) -> None:
        """Reserve the port of the workers, and serve the metrics. Raises SupervisorError."""
        # Imported only now, since prometheus_client reads its folder at import.
        from coupon_service.telemetry.metrics_http import (  # noqa: PLC0415
            MetricsServerError,
            serve_metrics,
        )
        from coupon_service.telemetry.multiprocess import WorkerCounts, service_registry  # noqa: PLC0415

        self._counts = WorkerCounts(self._folder)
        settings = self._settings
        reserved = stack.enter_context(reserve_port(settings.host, settings.port))
        port = reserved.getsockname()[1]
        self._settings = settings.model_copy(update={"port": port})
        try:
            metrics = stack.enter_context(
                serve_metrics(
                    settings.metrics_host,
                    settings.metrics_port,
                    service_registry(self._counts, self._folder, self._counted),
                    lambda: bool(self._readiness()),
                    lambda: (
                        is_serving(found := self._readiness()),
                        report(found, self._shards()),
                    ),
                )
            )
        except MetricsServerError as error:
            raise SupervisorError(str(error)) from error
        shards = {}
        if settings.shards > 1:
            most = settings.database_connections_max
            shards = {"shards": settings.shards, "database_connections_max": most}
        self._log.info(
            "starting",
            port=port,
            workers=settings.workers,
            metrics_port=metrics.port,
            **shards,
        )

    def _readiness(self) -> list[Readiness]:
        """The readiness of the live workers. Called in threads of the metrics server."""
        return [worker.readiness for worker in tuple(self._workers) if not worker.ended.is_set()]

    def _shards(self) -> list[list[Readiness]]:
        """What the live workers that have looked say of the shards. Called in the same threads."""
        return [it.shards for it in tuple(self._workers) if it.readiness & Readiness.PROBED]

    def _start(self, delay_s: float) -> Worker:
        names = (f"worker-{number}" for number in count())
        name = next(it for it in names if all(it != other.process.name for other in self._workers))
        taken = [it.core for it in self._workers if not it.retired]
        core = core_for(self._settings.workers, taken)
        worker = Worker(name, self._context, self._settings, self._read_settings, delay_s, core)
        self._workers.append(worker)
        self._tasks.create_task(self._watch(worker))
        return worker

    async def _watch(self, worker: Worker) -> None:
        """Wait for the end of the worker, and replace it unless it was retired."""
        await worker.ended.wait()
        self._workers.remove(worker)
        if worker.process.pid is not None:
            self._counts.worker_ended(worker.process.pid)
        if worker.retired:
            return
        self._deaths += 1
        exit_code = worker.process.exitcode
        self._log.error("worker died", pid=worker.process.pid, exit_code=exit_code)
        young = worker.age_s < YOUNG_S
        delay_s = min(worker.delay_s * 2, RESTART_DELAY_MAX_S) if young else RESTART_DELAY_S
        if not await _set_within(delay_s, self._stopping):
            self._start(delay_s)

    async def _end(self, worker: Worker, number: signal.Signals) -> None:
        """Stop a worker: by SIGTERM, or by SIGUSR2 when another has replaced it."""
        worker.retired = True
        worker.signal(number)
        settings = self._settings
        timeout_s = (settings.drain_grace_ms + settings.shutdown_timeout_ms) / 1000
        if not await _set_within(timeout_s + STOP_MARGIN_S, worker.ended):
            self._log.error("worker does not stop and is killed", pid=worker.process.pid)
            worker.signal(signal.SIGKILL)
            await worker.ended.wait()

    def _reload(self) -> None:
        """Handle SIGHUP."""
        if (settings := self._read_again()) is not None:
            self._settings = self._settings.model_copy(update={"log_level": settings.log_level})
            configure_logging(settings.log_level, settings.log_format)
            for worker in self._workers:
                worker.signal(signal.SIGHUP)

    def _restart(self) -> None:
        """Handle SIGUSR2."""
        if self._restarting is not None and not self._restarting.done():
            self._log.warning("a restart is under way")
        elif not self._stopping.is_set() and (settings := self._read_again()) is not None:
            kept = {name: getattr(self._settings, name) for name in KEPT}
            self._settings = settings.model_copy(update=kept)
            self._restarting = self._tasks.create_task(self._replace_all())

    async def _replace_all(self) -> None:
        """Replace the workers one by one: each new worker serves before the old one stops."""
        for number, old in enumerate(tuple(self._workers)):
            if number > 0:
                await asyncio.sleep(REPLACE_PAUSE_S)
            if old.ended.is_set():
                continue  # its replacement already has the new settings
            old.retired = True  # should it die now, its replacement is already starting
            new = self._start(RESTART_DELAY_S)
            if await _serves(new):
                self._log.info("worker replaced", pid=old.process.pid, by=new.process.pid)
                await self._end(old, signal.SIGUSR2)
            elif not old.ended.is_set():
                self._log.error("the new worker does not serve; the others stay as they are")
                old.retired = False
                await self._end(new, signal.SIGTERM)
                return
        self._log.info("all workers replaced")

    def _read_again(self) -> Settings | None:
        try:
            return self._read_settings()
        except SettingsError as error:
            self._log.error("the settings stay as they were", cause=str(error))
            return None


async def _serves(worker: Worker) -> bool:
    """Whether the worker serves within SERVE_TIMEOUT_S."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + SERVE_TIMEOUT_S
    while not worker.readiness & Readiness.SERVING:
        if worker.ended.is_set() or loop.time() > deadline_s:
            return False
        await asyncio.sleep(0.02)  # a change of shared memory wakes no one
    return True


async def _set_within(seconds: float, event: asyncio.Event) -> bool:
    """Whether the event is set within `seconds`."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


@contextmanager
def signals_blocked() -> Generator[None]:
    """Processes that are started inside the block inherit these signals as blocked.

    A service manager signals the whole process group. That would kill the fork server, and a worker
    that has not installed its handlers yet.
    """
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that reserves the port, 0 for a free one, without accepting connections.

    Raises SupervisorError when another process listens there. gRPC would not notice, since its
    ports are shared by SO_REUSEPORT, and connections would go to either service.
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


def run_worker(
    settings: Settings,
    read_settings: Callable[[], Settings],
    reported: tuple[Any, Any],
    core: int | None,
) -> None:
    """The main function of a worker process. `reported`: where it reports its readiness, in shared
    memory: a number, and an array with one for each of several shards."""
    import uvloop  # noqa: PLC0415

    from coupon_service.process.worker import work  # noqa: PLC0415
    from coupon_service.server import ServerError  # noqa: PLC0415

    run_on(core)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor as well
    configure_logging(settings.log_level, settings.log_format)

    of_worker, of_shards = reported

    def readiness_changed(readiness: Readiness, shards: Sequence[Readiness]) -> None:
        of_shards[: len(shards)] = shards
        of_worker.value = readiness

    parent = multiprocessing.parent_process()
    orphaned = parent.sentinel if parent is not None else None
    try:
        uvloop.run(work(settings, read_settings, readiness_changed, orphaned))
    except ServerError as error:
        structlog.get_logger("coupon_service.server").error("cannot go on", cause=str(error))
        sys.exit(1)
