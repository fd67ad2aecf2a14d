"""Clients of redis-py for the URL of Redis: for one server, or for the master that Sentinels name.

What redis-py (8.1) does, and why the clients are set up as they are:

* It retries by default (``Redis()``: 10 times). A script whose reply was lost would run twice;
  ours recognise that, but a dead server would take seconds to be noticed. So: no retries.
* With RESP3, its default, it takes part in "maintenance notifications": one more round trip to
  connect, timeouts relaxed to 10 s when the server says so, and no look for unread data or an end
  of file when a connection is taken from the pool. RESP2 has none of that.
* It asks one Sentinel after the other, so that a silent one takes all the time there is. All are
  asked at once instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from coupon_service.settings.redis_url import RedisUrl, Topology

R = TypeVar("R")


def connect(url: RedisUrl, timeout_ms: int) -> Redis:
    """A client for the one server of ``url``, or the master; it connects when used."""
    if url.topology is Topology.SENTINEL:
        return _master(url, timeout_ms)
    return connect_plain(url.plain, timeout_ms)


def connect_plain(url: str, timeout_ms: int) -> Redis:
    """A client for a URL as redis-py takes it."""
    return Redis.from_url(url, **_options(timeout_ms))  # pyright: ignore[reportUnknownMemberType]


def _options(timeout_ms: int) -> dict[str, Any]:
    return {
        "protocol": 2,
        "decode_responses": True,
        "driver_info": None,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": timeout_ms / 1000,
        "socket_timeout": None,
    }


def _master(url: RedisUrl, timeout_ms: int) -> Redis:
    parsed = cast("dict[str, Any]", parse_url(url.plain))
    for own in ("host", "port"):
        del parsed[own]
    if parsed.pop("connection_class", None) is SSLConnection:
        parsed["ssl"] = True
    options = _options(timeout_ms) | parsed
    of_sentinels = {
        **{name: value for name, value in options.items() if name not in _OF_DATA},
        "username": url.sentinel_username,
        "password": url.sentinel_password,
    }
    sentinels = _Sentinels(url.addresses, sentinel_kwargs=of_sentinels)
    return Redis.from_pool(_MasterPool(url.name, sentinels, **options))


_OF_DATA = frozenset({"db", "client_name"})


class _Sentinels(Sentinel):
    """Asks all Sentinels at once, and believes the first that knows a master which is up."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            return await first_answer(self._ask(it, service_name) for it in self.sentinels)
        except NoAnswerError as error:
            raise MasterNotFoundError(
                f"No Sentinel knows a master named {service_name} that is up: {error}"
            ) from error

    async def _ask(self, sentinel: Redis, service_name: str) -> tuple[str, int]:
        masters: dict[str, dict[str, Any]] = await cast("Any", sentinel).sentinel_masters()
        state = masters.get(service_name)
        if state is None:
            raise MasterNotFoundError(f"it watches {', '.join(masters) or 'nothing'}")
        if not cast("Any", self).check_master_state(state, service_name):
            raise MasterNotFoundError("it is down")
        return state["ip"], state["port"]


class _MasterPool(SentinelConnectionPool):
    """Connections to the master, and those to the Sentinels."""

    async def aclose(self) -> None:
        await super().aclose()
        await cast("Any", self.sentinel_manager).aclose()


class NoAnswerError(Exception):
    """None of those who were asked knew; the message has the reason of each."""


async def first_answer(questions: Iterable[Coroutine[Any, Any, R]]) -> R:
    """The first answer to questions that are asked at once. Raises NoAnswerError."""
    asked = [asyncio.ensure_future(it) for it in questions]
    errors: list[str] = []
    try:
        for each in asyncio.as_completed(asked):
            try:
                return await each
            except Exception as error:  # noqa: BLE001 - the others may know
                errors.append(str(error.__cause__ or error))
    finally:
        for each in asked:
            each.add_done_callback(_seen)
            each.cancel()
    raise NoAnswerError("; ".join(errors))


def _seen(task: asyncio.Future[Any]) -> None:
    """Takes note of an error that nobody waits for."""
    if not task.cancelled():
        task.exception()
