"""A service with private PostgreSQL and Redis behind proxies, for faults under load."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
from faults.load import Load
from faults.proxy import Proxy
from psycopg.rows import TupleRow
from support.calls import tried
from support.service import Api, ServerThread, settings_for
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres, EmbeddedRedis
from coupon_service.store import migrations

DEADLINE_S: Final = 2.5
"""The deadline of each call."""

SETTINGS: Final[dict[str, object]] = {
    "redis_timeout_ms": 250,
    "lock_timeout_ms": 500,
    "statement_timeout_ms": 1_000,
    "default_deadline_ms": 2_500,
    "tcp_user_timeout_ms": 1_000,
    "idle_in_transaction_timeout_ms": 1_000,
    "pool_timeout_ms": 500,
}
"""Timeouts are shorter than in production, so that faults take less time."""

POSTGRES_SETTINGS: Final = {
    "deadlock_timeout": "50ms",
    "max_connections": "40",
    # Needed to wait for a synchronous standby.
    "wal_level": "replica",
    "max_wal_senders": "1",
}


@dataclass(slots=True)
class Stack:
    """The running servers. `ahead`: the offset of the service's clock."""

    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    second_redis: EmbeddedRedis
    to_postgres: Proxy
    to_redis: Proxy
    ahead: timedelta = timedelta()
    server: ServerThread = field(init=False)
    api: Api = field(init=False)

    def now(self) -> datetime:
        """The time of the service."""
        return datetime.now(UTC) + self.ahead

    def connect(self) -> psycopg.Connection[TupleRow]:
        """A connection to PostgreSQL that bypasses the proxy."""
        return psycopg.connect(self.postgres.url, autocommit=True)

    def parts(self) -> Any:
        """The server, for access to its internals."""
        return self.server.server

    def new_load(self, seed: int) -> Load:
        """Clients with new books."""
        return Load(self.api, self.server.address, seed, DEADLINE_S)


@contextmanager
def stack(folder: Path) -> Generator[Stack]:
    """A working service without load."""
    with ExitStack() as running:
        postgres = EmbeddedPostgres(folder / "postgres", durable=False, settings=POSTGRES_SETTINGS)
        redis = EmbeddedRedis(folder / "redis", durable=False)
        second_redis = EmbeddedRedis(folder / "second-redis", durable=False)
        for server in (postgres, redis, second_redis):
            running.enter_context(server)
        migrations.apply(postgres.url)
        # It replaces the first in a failover, so its password has to be the same.
        with redis_client(second_redis.url) as client:
            client.config_set("requirepass", redis.url.split(":")[2].partition("@")[0])
        to_postgres = running.enter_context(Proxy(postgres.port, postgres=True))
        to_redis = running.enter_context(Proxy(redis.port))
        made = Stack(postgres, redis, second_redis, to_postgres, to_redis)
        settings = settings_for(to_postgres.url(postgres.url), to_redis.url(redis.url), **SETTINGS)
        made.server = running.enter_context(ServerThread(settings, made.now))
        made.api = Api(made.server.address)
        running.callback(made.api.close)
        until(lambda: tried(made.api.draft) == "OK")
        yield made


def connects(url: str) -> bool:
    """Whether PostgreSQL accepts a connection."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def redis_client(url: str) -> Any:
    """A client of a Redis that bypasses the proxy."""
    from redis import Redis

    return Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
