"""A Redis with a replica, and the Sentinels that watch them."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from redis import Redis

from coupon_service.embedded import EmbeddedRedis
from coupon_service.embedded.machine import HOST

NAME = "coupons"
PASSWORD = "of-the-data"
SENTINEL_PASSWORD = "of-the-sentinels"
DOWN_AFTER_MS = 500
SWITCH_S_MAX = 30.0


class SharedPasswordRedis(EmbeddedRedis):
    """A Redis whose password is that of other servers."""

    password = PASSWORD

    def _open_data(self) -> None:
        super()._open_data()
        self._password = self.password


class EmbeddedSentinel(SharedPasswordRedis):
    """A Sentinel, which is the program of Redis with a file that it writes to."""

    name = "Sentinel"
    password = SENTINEL_PASSWORD

    def __init__(self, folder: Path, watched: EmbeddedRedis) -> None:
        super().__init__(folder, durable=False)
        self._watched = watched

    def _command(self) -> list[str]:
        lines = (
            f"bind {HOST}",
            f"port {self.port}",
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

    servers: list[EmbeddedRedis]
    sentinels: list[EmbeddedSentinel]

    def url(self, *extra: str) -> str:
        """The URL of the service; ``extra``: addresses that come before those of the Sentinels."""
        hosts = ",".join((*extra, *(f"{HOST}:{it.port}" for it in self.sentinels)))
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{NAME}?sentinel_password={SENTINEL_PASSWORD}"

    @property
    def master(self) -> EmbeddedRedis:
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
        port = self.sentinels[0].port
        with Redis(HOST, port, password=SENTINEL_PASSWORD, decode_responses=True) as sentinel:
            return cast("Any", sentinel).execute_command(*command)

    def ready(self) -> bool:
        """Whether the Sentinels and the servers have found each other."""
        for each in self.sentinels:
            with Redis(HOST, each.port, password=SENTINEL_PASSWORD, decode_responses=True) as it:
                state: Mapping[str, Any] = cast("Any", it).sentinel_masters()[NAME]
            if state["num-slaves"] < 1 or state["num-other-sentinels"] < 2:
                return False
        with Redis(HOST, self.servers[1].port, password=PASSWORD) as replica:
            return cast("Any", replica).info("replication")["master_link_status"] == "up"


@contextmanager
def watched_redis(folder: Path) -> Generator[Watched]:
    """Two servers and three Sentinels that know each other."""
    with ExitStack() as servers:

        def redis(name: str, **settings: str) -> EmbeddedRedis:
            settings = {"masterauth": PASSWORD, "repl-diskless-sync-delay": "0", **settings}
            return servers.enter_context(
                SharedPasswordRedis(folder / name, durable=False, settings=settings)
            )

        first = redis("first")
        second = redis("second", replicaof=f"{HOST} {first.port}")
        sentinels = [
            servers.enter_context(EmbeddedSentinel(folder / f"sentinel-{i}", first))
            for i in range(3)
        ]
        watched = Watched([first, second], sentinels)
        deadline_s = time.monotonic() + SWITCH_S_MAX
        while not watched.ready():
            assert time.monotonic() < deadline_s, "the Sentinels do not find each other"
            time.sleep(0.02)
        yield watched
