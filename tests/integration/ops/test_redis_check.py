"""What a Redis must be is checked, and what it is instead is told."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from support.doc_tables import ROOT
from support.lease_servers import ANN, PATIENT_MS, TTL_MS, acquire

from coupon_service.embedded import EmbeddedRedis
from coupon_service.leases import AcquireStatus, Leases
from coupon_service.ratelimit.windows import Windows
from coupon_service.telemetry.readiness import Readiness, report


@asynccontextmanager
async def leases_on(url: str) -> AsyncGenerator[Leases]:
    leases = Leases(url, timeout_ms=PATIENT_MS)
    yield leases
    await leases.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "redis", durable=False) as server:
        yield server


@pytest.fixture
async def admin(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url, decode_responses=True)
    yield client
    await client.aclose()


async def found(url: str) -> set[Readiness]:
    async with leases_on(url) as leases:
        return set(await leases.check())


async def test_a_redis_that_will_do_is_told_without_a_finding(
    server: EmbeddedRedis, admin: Redis
) -> None:
    async with leases_on(server.url) as leases:
        assert await leases.check() == {}
        assert await leases.check() == {}
    await asyncio.sleep(1.1)
    assert await admin.keys() == []


async def test_a_node_of_a_cluster_is_told(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis", settings={"cluster-enabled": "yes"}) as node:
        assert await found(node.url) == {Readiness.REDIS_CLUSTER_NODE}


async def test_a_replica_is_told_also_when_it_becomes_one(
    server: EmbeddedRedis, admin: Redis
) -> None:
    async with leases_on(server.url) as leases:
        assert await leases.check() == {}
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        findings = await leases.check()
        assert set(findings) == {Readiness.REDIS_REPLICA}
        assert "master" in findings[Readiness.REDIS_REPLICA]
        await admin.execute_command("REPLICAOF", "NO", "ONE")
        assert await leases.check() == {}


async def test_a_redis_that_is_full_is_told(server: EmbeddedRedis, admin: Redis) -> None:
    await admin.config_set("maxmemory", "1")
    assert await found(server.url) == {Readiness.REDIS_NOT_WRITABLE}


async def test_a_redis_that_may_evict_locks_is_usable_with_a_warning(
    server: EmbeddedRedis, admin: Redis
) -> None:
    await admin.config_set("maxmemory-policy", "volatile-ttl")
    async with leases_on(server.url) as leases:
        findings = await leases.check()
    assert set(findings) == {Readiness.REDIS_MAY_EVICT}
    assert "noeviction" in findings[Readiness.REDIS_MAY_EVICT]


async def test_a_redis_without_scripts_is_told(tmp_path: Path) -> None:
    settings = {"rename-command": 'EVALSHA ""'}
    with EmbeddedRedis(tmp_path / "redis", durable=False, settings=settings) as server:
        assert await found(server.url) == {Readiness.REDIS_NO_SCRIPTS}


@pytest.mark.parametrize(
    "allowed", ["~coupon:* +ping +info", "~coupon:* +@all -zadd", "~other:* +@all"]
)
async def test_a_user_who_may_not_do_what_is_needed_is_told(
    server: EmbeddedRedis, admin: Redis, allowed: str
) -> None:
    assert await found(await user(server, admin, allowed)) == {Readiness.REDIS_NO_PRIVILEGE}


async def test_the_acl_of_the_documentation_suffices(server: EmbeddedRedis, admin: Redis) -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8").replace("\\\n", "")
    (rule,) = re.findall(r"^ACL SETUSER coupon on >\S+ (.+)$", page, re.MULTILINE)
    url = await user(server, admin, rule)
    async with leases_on(url) as leases:
        assert await leases.check() == {}
        taken = await acquire(leases, ANN, TTL_MS)
        assert taken.status is AcquireStatus.GRANTED
        assert await leases.extend(ANN, taken.expire_ms + 1)
        assert len(await leases.list_user("ann")) == len(await leases.list_book(ANN.book_id)) == 1
        assert await leases.books() == [ANN.book_id]
        assert await leases.release(ANN)
    windows = Windows(url, PATIENT_MS)
    await windows.left_ms(["key"])
    await windows.close()
    allowed = set(re.findall(r"\+(\S+)", rule))
    for needless in sorted(allowed - {"info", "ping", "eval", "exists"}):
        less = rule.replace(f"+{needless} ", "", 1) + f" -{needless}"
        assert await found(await user(server, admin, less)), f"{needless} is not needed"


async def test_a_socket_of_the_machine_is_used(tmp_path: Path) -> None:
    socket = tmp_path / "redis" / "data" / "redis.sock"  # where the server may write
    settings = {"unixsocket": "redis.sock", "unixsocketperm": "777"}
    with EmbeddedRedis(tmp_path / "redis", durable=False, settings=settings) as server:
        password = urlsplit(server.url).password
        assert await found(f"unix://:{password}@{socket}") == set()


def test_readiness_tells_what_was_found() -> None:
    def body(*flags: Readiness) -> tuple[object, object]:
        found = Readiness.PROBED
        for flag in flags:
            found |= flag
        answer: dict[str, Any] = report([found])
        return answer["redis"], answer["redis_warnings"]

    assert body() == ("unreachable", [])
    assert body(Readiness.REDIS) == ("ok", [])
    assert body(Readiness.REDIS_CLUSTER_NODE) == ("cluster node", [])
    assert body(Readiness.REDIS, Readiness.REDIS_MAY_EVICT) == ("ok", ["may evict locks"])


async def user(server: EmbeddedRedis, admin: Redis, rules: str) -> str:
    """The URL of a user with these rules alone."""
    await admin.execute_command(
        "ACL", "SETUSER", "coupon", "reset", "on", ">secret", *rules.split()
    )
    parts = urlsplit(server.url)
    return parts._replace(netloc=f"coupon:secret@{parts.hostname}:{parts.port}").geturl()
