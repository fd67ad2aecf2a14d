"""The servers of a run: PostgreSQL, Redis, the service and the reference servers.

All data is in a temporary folder, and all servers listen on loopback. Leaving the context manager
stops them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final

import grpc.aio
import psutil
from psycopg.conninfo import make_conninfo

from bench.loads import caller
from coupon_service.cli.client import connect
from coupon_service.cli.health import wait_until_serving
from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.embedded.machine import HOST, free_port
from coupon_service.model.scopes import shard_of_book
from coupon_service.store.sessions import ShardPlace

ROOT: Final = Path(__file__).parents[2]
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0

POSTGRES_SETTINGS: Final = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "max_connections": "200",
}
"""Other settings keep their defaults: a commit is on disk before it is acknowledged."""


class BenchError(Exception):
    """The run cannot continue. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Server:
    """A gRPC server and its processes."""

    name: str
    address: str
    process: psutil.Process
    start_s: float

    @property
    def workers(self) -> list[psutil.Process]:
        """Those of its processes that listen."""
        return sorted(
            (it for it in self.process.children(recursive=True) if _listens(it, self.address)),
            key=lambda it: it.pid,
        )


def _listens(process: psutil.Process, address: str) -> bool:
    port = int(address.rpartition(":")[2])
    return any(
        it.status == psutil.CONN_LISTEN and it.laddr.port == port
        for it in process.net_connections("tcp")
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """A migrated PostgreSQL and a Redis, on which the service and others can be started.

    `others`: servers with the other shards, each with as many as the first.
    """

    folder: Path
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    workers: int
    shards: int = 1
    others: tuple[EmbeddedPostgres, ...] = ()

    @property
    def databases(self) -> tuple[EmbeddedPostgres, ...]:
        """All servers of PostgreSQL, in the order of the shards."""
        return (self.postgres, *self.others)

    def database_of(self, book_id: str) -> str:
        """How to connect to the tables of this book."""
        if self.shards == 1:
            return self.postgres.url
        shard = shard_of_book(book_id, self.shards)
        server = self.databases[shard * len(self.databases) // self.shards]
        schema = ShardPlace(shard, self.shards).schema
        return make_conninfo(server.url, options=f"-c search_path={schema}")

    @contextmanager
    def service(self, module: str = "coupon_service", **settings: str) -> Generator[Server]:
        """The service, configured as in production.

        `module`: the Python module to run. `settings`: COUPON_ variables without the prefix.
        """
        port = free_port()
        environment = self._settings() | {
            "COUPON_PORT": str(port),
            **{f"COUPON_{name.upper()}": value for name, value in settings.items()},
        }
        command = ("-m", module, "serve")
        with self._server("service", command, port, environment) as server:
            yield server

    @contextmanager
    def reference(self, name: str) -> Generator[Server]:
        """A reference server of bench/servers."""
        port = free_port()
        command = ("-m", f"bench.servers.{name}", f"{HOST}:{port}", str(self.workers))
        environment = _environment() | {"DATABASE_URL": self.postgres.url}
        with self._server(name, command, port, environment) as server:
            yield server

    def migrate(self) -> None:
        """Create the tables. Raises BenchError."""
        command = (sys.executable, "-m", "coupon_service", "migrate", "up")
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._settings(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"The database cannot be migrated: {done.stderr.strip()}")

    def _settings(self) -> dict[str, str]:
        return _environment() | {
            "COUPON_DATABASE_URL": self.postgres.url,
            "COUPON_REDIS_URL": self.redis.url,
            "COUPON_SHARDS": str(self.shards),
            "COUPON_SHARD_URLS": ",".join(it.url for it in self.databases if self.shards > 1),
            "COUPON_LOCK_TOKEN_SECRET": "only the benchmark signs with this one",
            "COUPON_WORKERS": str(self.workers),
            "COUPON_METRICS_PORT": "0",
            "COUPON_DRAIN_GRACE_MS": "0",
            "COUPON_LOG_FORMAT": "json",
            # All processes share the cores at full load: a late answer is no fault of Redis.
            "COUPON_REDIS_TIMEOUT_MS": "250",
            **caller.SETTINGS,
        }

    @contextmanager
    def _server(
        self, name: str, command: tuple[str, ...], port: int, environment: Mapping[str, str]
    ) -> Generator[Server]:
        log = self.folder / f"{name}.log"
        started = perf_counter()
        with log.open("ab") as output:
            process = psutil.Popen(
                [sys.executable, *command],
                cwd=self.folder,  # without a .env
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the benchmark only
            )
        address = f"{HOST}:{port}"
        try:
            asyncio.run(_await_serving(address, process, log))
            start_s = perf_counter() - started
            yield Server(name, address, psutil.Process(process.pid), start_s)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except psutil.TimeoutExpired:
                for it in (*process.children(recursive=True), process):
                    it.kill()


@contextmanager
def stack(workers: int, shards: int = 1, databases: int = 1) -> Generator[Stack]:
    """A private PostgreSQL, or so many, and Redis. Raises EmbeddedError or BenchError."""
    with ExitStack() as servers:
        folder = Path(servers.enter_context(TemporaryDirectory(prefix="coupon-bench-")))
        redis = servers.enter_context(EmbeddedRedis(folder / "redis"))
        postgres, *others = (
            servers.enter_context(
                EmbeddedPostgres(folder / f"postgres-{number}", settings=POSTGRES_SETTINGS)
            )
            for number in range(databases)
        )
        made = Stack(folder, postgres, redis, workers, shards, tuple(others))
        made.migrate()
        yield made


def _environment() -> dict[str, str]:
    # Bytecode is cached, as in an installation.
    removed = ("COUPON_", "DATABASE_URL", "REDIS_URL", "PROMETHEUS_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    return kept | {"PYTHONPATH": str(ROOT)}


async def _await_serving(address: str, process: psutil.Popen, log: Path) -> None:
    """Return when the server serves. Raises BenchError when it does not start."""
    serving = asyncio.create_task(_watch_health(address))
    deadline = perf_counter() + START_TIMEOUT_S
    while not serving.done():
        if process.poll() is not None or perf_counter() > deadline:
            serving.cancel()
            raise BenchError(f"A server did not start: {_last_line(log)}")
        await asyncio.wait({serving}, timeout=0.05)
    await serving


async def _watch_health(address: str) -> None:
    async with connect(address) as service:
        try:
            await wait_until_serving(service)
        except grpc.aio.AioRpcError as error:
            # A reference server, which has no Health/Watch.
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "No output."
