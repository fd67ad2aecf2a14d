"""One clock for the server and for its Redis, which only the test moves."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from unittest import mock

import redis
import structlog
from redis.crc import key_slot
from support.redis_cluster import SLOTS
from support.service import ServerThread, settings_for

from coupon_service.leases.scripts import LeaseScripts
from coupon_service.maintenance.lock_sweeper import LockSweeper
from coupon_service.maintenance.pool_sweeper import PoolSweeper
from coupon_service.rpc import handler
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.fields import Fields
from coupon_service.settings.redis_url import read_redis_url

ADD_SCRIPT = LeaseScripts._script
REAL_CLOCK = "redis.call('TIME')"
OWN_CLOCK = """(function()
  for _, key in ipairs({%s}) do
    local clock = redis.pcall('HMGET', key, 's', 'us')
    if not clock.err then return clock end
  end
end)()"""
"""The key that is on this server: a script of a cluster may read the others of its own master."""


class Clock:
    """Milliseconds since 1970. It is ahead of the real one, by which Redis drops keys.

    `redis_url`: of one server, or of all masters of a cluster, which share the slots in this order.
    """

    def __init__(self, redis_url: str) -> None:
        url = read_redis_url(redis_url)
        # The commands are so many that what a client of Redis does beside sending them counts.
        self._servers = [
            redis.Redis.from_url(url.at(*it)).connection_pool.get_connection()
            for it in url.addresses
        ]
        self._keys = [_key_of(n, len(self._servers)) for n in range(len(self._servers))]
        self.source = OWN_CLOCK % ", ".join(f"'{it}'" for it in self._keys)
        self.now_ms = (int(time.time()) + 86_400) * 1_000
        self.begin()

    def begin(self) -> None:
        """Forgets all locks."""
        self._do(*(("FLUSHDB",) for _ in self._servers))
        self.advance(1)

    def advance(self, by_ms: int) -> None:
        """Lets time pass, for the server and for Redis."""
        self.now_ms += by_ms
        seconds, milliseconds = divmod(self.now_ms, 1_000)
        self._do(*(("HSET", it, "s", seconds, "us", milliseconds * 1_000) for it in self._keys))

    def now(self) -> datetime:
        """The time of the server."""
        return datetime.fromtimestamp(self.now_ms / 1_000, UTC)

    def _do(self, *commands: tuple[str | int, ...]) -> None:
        """A command of each server."""
        for server, command in zip(self._servers, commands, strict=True):
            server.send_command(*command)
        for server in self._servers:
            server.read_response()


def _key_of(number: int, servers: int) -> str:
    """The key of the clock that is on this one of so many servers."""
    slots = range(SLOTS * number // servers, SLOTS * (number + 1) // servers)
    names = (f"model:clock:{n}" for n in range(1_000))
    return next(it for it in names if key_slot(it.encode()) in slots)


def identity(user: str, business: str) -> tuple[tuple[str, bytes], ...]:
    """Metadata of a call of an end user of a business; of no user: of a service."""
    named = (("end-user-bin", user.encode()), ("business-bin", business.encode()))
    return named if user else ()


def service_of(business: str) -> tuple[tuple[str, bytes], ...]:
    """Metadata of a call of a service of a business alone."""
    return (("business-bin", business.encode()),)


def as_they_say(_: str, rpc: RequestContext) -> None:
    """Sets the caller by `identity`, as by the claims of a token."""
    for user in rpc.values("end-user-bin"):
        rpc.caller, rpc.end_user = _claimed("sub", user), True
    for business in rpc.values("business-bin"):
        rpc.business_id = _claimed("business_id", business)


def _claimed(name: str, value: str | bytes) -> str:
    return Fields().identifier(name, value.decode() if isinstance(value, bytes) else value)


@contextmanager
def clocked_server(
    database_url: str, redis_url: str, clock: Clock, **changes: object
) -> Generator[ServerThread]:
    """A server whose Lua scripts ask `clock`, and that believes who callers say they are; nothing
    sweeps by itself.
    """

    def on_own_clock(of: LeaseScripts, source: str) -> tuple[str, str]:
        return ADD_SCRIPT(of, source.replace(REAL_CLOCK, clock.source))

    async def never(_: LockSweeper | PoolSweeper) -> None:
        await asyncio.Event().wait()

    unlimited = {"rate_limit_end_users": "none", "guess_limit_end_users": "none"}
    settings = settings_for(database_url, redis_url, **unlimited, **changes)
    logging = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    try:
        with (
            mock.patch.object(LeaseScripts, "_script", on_own_clock),
            mock.patch.object(LockSweeper, "run", never),
            mock.patch.object(PoolSweeper, "run", never),
            mock.patch.object(handler, "_as_anonymous", as_they_say),
            ServerThread(settings, clock.now) as running,
        ):
            yield running
    finally:
        structlog.configure(**logging)
