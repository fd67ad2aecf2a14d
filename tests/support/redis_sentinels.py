"""A Redis with a replica, and the Sentinels that watch them."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError
from support.redis_tls import RedisTls

from coupon_service.embedded import EmbeddedRedis
from coupon_service.embedded.machine import HOST

NAME = "coupons"
PASSWORD = "of-the-data"
SENTINEL_PASSWORD = "of-the-sentinels"
DOWN_AFTER_MS = 500
SWITCH_S_MAX = 30.0


class SharedPasswordRedis(EmbeddedRedis):
    """A Redis whose password is that of other servers, and which may take TLS alone."""

    password = PASSWORD

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
        tls: RedisTls | None = None,
    ) -> None:
        super().__init__(folder, durable=False, settings=settings)
        self._tls = tls

    def client(self) -> Redis:
        """A client of this server."""
        secure = {"ssl": True, "ssl_ca_certs": str(self._tls.authority)} if self._tls else {}
        options: Any = {"password": self.password, "decode_responses": True, **secure}
        return Redis(HOST, self.port, **options)

    def ask(self, *command: str | int) -> Any:
        """The reply of this server."""
        with self.client() as client:
            return cast("Any", client).execute_command(*command)

    def _open_data(self) -> None:
        super()._open_data()
        self._password = self.password

    def _command(self) -> list[str]:
        return [self._tls.program(self.folder), "-"] if self._tls else super()._command()

    def _input(self) -> str:
        # Of two equal settings the later one holds.
        return super()._input() + "".join(f"{it}\n" for it in self._tls_lines())

    def _tls_lines(self) -> list[str]:
        return self._tls.lines(self.port) if self._tls else []

    def _answers(self) -> bool:
        if self._tls is None:
            return super()._answers()
        try:
            return (self.data / self.pid_file).exists() and self.ask("PING")
        except RedisError:
            return False


class EmbeddedSentinel(SharedPasswordRedis):
    """A Sentinel, which is the program of Redis with a file that it writes to."""

    name = "Sentinel"
    password = SENTINEL_PASSWORD

    def __init__(self, folder: Path, watched: EmbeddedRedis, tls: RedisTls | None = None) -> None:
        super().__init__(folder, tls=tls)
        self._watched = watched

    def _command(self) -> list[str]:
        lines = (
            f"bind {HOST}",
            f"port {self.port}",
            *self._tls_lines(),
            f"pidfile {self.pid_file}",
            f"requirepass {SENTINEL_PASSWORD}",
            f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
            f"sentinel monitor {NAME} {HOST} {self._watched.port} 2",
            f"sentinel auth-pass {NAME} {PASSWORD}",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} 5000",
        )
        (self.data / "sentinel.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        program, *_ = super()._command()
        return [program, "sentinel.conf", "--sentinel"]

    def _input(self) -> str:
        return ""


@dataclass
class Watched:
    """Two servers, of which one is the master, and three Sentinels."""

    servers: list[SharedPasswordRedis]
    sentinels: list[EmbeddedSentinel]
    tls: RedisTls | None = None

    def url(self, *extra: str) -> str:
        """The URL of the service; ``extra``: addresses that come before those of the Sentinels."""
        hosts = ",".join((*extra, *(f"{HOST}:{it.port}" for it in self.sentinels)))
        scheme, query = ("rediss", f"&{self.tls.query}") if self.tls else ("redis", "")
        name = f"{NAME}?sentinel_password={SENTINEL_PASSWORD}{query}"
        return f"{scheme}+sentinel://:{PASSWORD}@{hosts}/{name}"

    @property
    def master(self) -> SharedPasswordRedis:
        """That which the Sentinels name."""
        port = self._ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1]
        return next(it for it in self.servers if it.port == int(port))

    def await_switch(self, old: EmbeddedRedis) -> float:
        """The time at which another master is named by all Sentinels."""
        deadline_s = time.monotonic() + SWITCH_S_MAX
        while self.master is old:
            assert time.monotonic() < deadline_s, "the Sentinels name no other master"
            time.sleep(0.005)
        return time.monotonic()

    def fail_over(self) -> None:
        """Let the Sentinels make the replica the master, although there is one."""
        self._ask("SENTINEL", "FAILOVER", NAME)

    def _ask(self, *command: str) -> Any:
        return self.sentinels[0].ask(*command)

    def ready(self) -> bool:
        """Whether the Sentinels and the servers have found each other."""
        for each in self.sentinels:
            with each.client() as it:
                state: Mapping[str, Any] = cast("Any", it).sentinel_masters()[NAME]
            if state["num-slaves"] < 1 or state["num-other-sentinels"] < 2:
                return False
        with self.servers[1].client() as replica:
            return cast("Any", replica).info("replication")["master_link_status"] == "up"


@contextmanager
def watched_redis(folder: Path, tls: RedisTls | None = None) -> Generator[Watched]:
    """Two servers and three Sentinels that know each other. `tls`: all of them take TLS alone."""
    with ExitStack() as servers:

        def redis(name: str, **settings: str) -> SharedPasswordRedis:
            settings = {"masterauth": PASSWORD, "repl-diskless-sync-delay": "0", **settings}
            return servers.enter_context(SharedPasswordRedis(folder / name, settings, tls))

        first = redis("first")
        second = redis("second", replicaof=f"{HOST} {first.port}")
        sentinels = [
            servers.enter_context(EmbeddedSentinel(folder / f"sentinel-{i}", first, tls))
            for i in range(3)
        ]
        watched = Watched([first, second], sentinels, tls)
        deadline_s = time.monotonic() + SWITCH_S_MAX
        while not watched.ready():
            assert time.monotonic() < deadline_s, "the Sentinels do not find each other"
            time.sleep(0.02)
        yield watched
