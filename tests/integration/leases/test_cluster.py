"""Locks on a Redis Cluster of three masters, one of which may be down, and whose slots may move."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import AskError, MovedError, TryAgainError
from support.doc_tables import ROOT
from support.lease_servers import PATIENT_MS, TTL_MS, acquire
from support.limiters import LimitEvents, service
from support.redis_cluster import Cluster, redis_cluster
from support.redis_sentinels import PASSWORD

from coupon_service.batching import BATCHING_DEFAULTS
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import AcquireStatus, AdmitStatus, LeaseKey, LeaseRequest, Leases
from coupon_service.leases.scripts import user_index
from coupon_service.ratelimit.callers import CallerLimits
from coupon_service.ratelimit.limiter import RateClass, RateLimiter
from coupon_service.ratelimit.windows import Windows
from coupon_service.redis_client.cluster import SPARED_S, ClusterPipelines
from coupon_service.telemetry.metrics import Metrics
from coupon_service.telemetry.readiness import Readiness

TIMEOUT_MS = 500
SILENCE_S = 1
"""Much longer than calls of one that answers take."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Its nodes do not take each other for dead, however long a test stops some of them."""
    with redis_cluster(tmp_path) as cluster:
        configure(cluster, "cluster-node-timeout", 600_000)
        yield cluster


def configure(cluster: Cluster, name: str, value: str | int) -> None:
    for node in cluster.nodes:
        cluster.ask(node, "CONFIG", "SET", name, value)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def leases(cluster: Cluster, registry: CollectorRegistry) -> AsyncIterator[Leases]:
    leases = Leases(cluster.url, timeout_ms=TIMEOUT_MS, metrics=Metrics(registry))
    yield leases
    await leases.close()


def counted(registry: CollectorRegistry, what: str) -> float:
    return registry.get_sample_value(f"coupon_lock_index_{what}_total") or 0.0


async def granted(leases: Leases, key: LeaseKey) -> bool:
    try:
        return (await acquire(leases, key, TTL_MS)).status is AcquireStatus.GRANTED
    except LocksUnavailable:
        return False


async def test_every_master_is_checked(cluster: Cluster, leases: Leases) -> None:
    assert await leases.check() == {}
    cluster.ask(cluster.nodes[1], "CONFIG", "SET", "maxmemory", 1)
    cluster.nodes[2].kill()
    await asyncio.sleep(0)
    findings = await leases.check()
    assert set(findings) == {Readiness.REDIS_NOT_WRITABLE, Readiness.REDIS_NODE_DOWN}
    assert f":{cluster.nodes[1].port}: " in findings[Readiness.REDIS_NOT_WRITABLE]
    assert f":{cluster.nodes[2].port}: " in findings[Readiness.REDIS_NODE_DOWN]


async def test_the_acl_of_the_documentation_suffices(cluster: Cluster) -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8").replace("\\\n", "")
    rules = " ".join(re.findall(r"^ACL SETUSER coupon (?:on >\S+ )?(.+)$", page, re.MULTILINE))
    for node in cluster.nodes:
        cluster.ask(node, "ACL", "SETUSER", "coupon", "on", ">secret", *rules.split())
        cluster.ask(node, "CONFIG", "SET", "cluster-require-full-coverage", "yes")
    url = cluster.url.replace(f":{PASSWORD}@", "coupon:secret@")
    leases = Leases(url, timeout_ms=TIMEOUT_MS)
    assert set(await leases.check()) == {Readiness.REDIS_FULL_COVERAGE}
    assert await granted(leases, LeaseKey("CODE", "book", "user", "lock"))
    await leases.close()


async def test_a_cluster_that_stops_as_a_whole_without_a_master_is_told(
    cluster: Cluster, leases: Leases
) -> None:
    configure(cluster, "cluster-require-full-coverage", "yes")
    assert set(await leases.check()) == {Readiness.REDIS_FULL_COVERAGE}
    configure(cluster, "cluster-node-timeout", 1_000)
    cluster.nodes[2].kill()
    deadline_s = time.monotonic() + 60
    while Readiness.REDIS_CLUSTER_DOWN not in await leases.check():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.1)


async def test_a_server_that_is_no_cluster_is_told(redis_alone_url: str) -> None:
    leases = Leases(redis_alone_url.replace("redis://", "redis+cluster://"), timeout_ms=TIMEOUT_MS)
    with pytest.raises(LocksUnavailable) as raised:
        await leases.check()
    assert "cluster support disabled" in str(raised.value.__cause__)
    await leases.close()


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_master_that_is_down_fails_the_codes_of_its_slots_only(
    cluster: Cluster, leases: Leases, how: str
) -> None:
    down = cluster.nodes[2]
    keys = [LeaseKey(f"CODE{i}", f"book-{i}", f"user-{i}", f"lock-{i}") for i in range(300)]
    masters = zip(keys, cluster.masters_of(f"{{{it.code}}}" for it in keys), strict=True)
    own = {key for key, master in masters if master is down}
    await leases.ping()
    if how == "killed":
        down.kill()
    else:
        down.pause()
    results = await leases.acquire_each([LeaseRequest(key, TTL_MS) for key in keys])
    if how == "frozen":
        down.resume()

    failed = {
        key for key, it in zip(keys, results, strict=True) if isinstance(it, LocksUnavailable)
    }
    assert failed == own
    assert 50 < len(own) < 150


async def test_calls_do_not_wait_for_a_silent_master_again_and_again(cluster: Cluster) -> None:
    down = cluster.nodes[2]
    leases = Leases(cluster.url, timeout_ms=SILENCE_S * 1_000)
    await leases.ping()
    down.pause()
    started_s = time.monotonic()
    for turn in range(20):
        keys = [LeaseKey(f"CODE{i}", f"book-{i}", f"user-{i}", f"{turn}-{i}") for i in range(30)]
        await leases.acquire_each([LeaseRequest(key, TTL_MS) for key in keys])
    took_s = time.monotonic() - started_s
    down.resume()
    await leases.close()

    assert took_s < 10 * SILENCE_S


async def test_an_index_that_cannot_be_reached_is_written_later(
    cluster: Cluster, leases: Leases, registry: CollectorRegistry
) -> None:
    up, down, _ = cluster.nodes
    code, user, book = cluster.code_at(up), cluster.user_at(down), cluster.book_at(down)
    key = LeaseKey(code, book, user, "lock")
    released = LeaseKey(cluster.code_at(up, "OTHER"), book, user, "released")
    assert await granted(leases, released)
    down.pause()
    assert await granted(leases, key)
    assert await leases.release(released)
    assert counted(registry, "missed") == 4
    await leases.repair()
    assert counted(registry, "repaired") == 0
    down.resume()
    await asyncio.sleep(SPARED_S + 0.05)
    await leases.repair()

    assert counted(registry, "repaired") == 4
    assert [it.key for it in await leases.list_user(user)] == [key]
    assert [it.key for it in await leases.list_book(book)] == [key]


async def test_entries_that_cannot_be_written_yet_hold_up_no_others(
    cluster: Cluster, leases: Leases, registry: CollectorRegistry
) -> None:
    up, back, down = cluster.nodes
    code, book = cluster.code_at(up), cluster.book_at(up)
    users = [f"user{i}" for i in range(400)]
    masters = zip(users, cluster.masters_of(map(user_index, users)), strict=True)
    keys = [LeaseKey(code, book, user, f"lock-{user}") for user, it in masters if it is down]
    late = LeaseKey(code, book, cluster.user_at(back), "late")
    assert len(keys) > BATCHING_DEFAULTS.pipeline_max_size / 2
    await leases.ping()
    down.pause()
    back.pause()
    results = await leases.acquire_each([LeaseRequest(it, TTL_MS) for it in keys])
    assert not any(isinstance(it, LocksUnavailable) for it in results)
    assert await granted(leases, late)
    back.resume()
    await asyncio.sleep(SPARED_S + 0.05)
    for _ in range(3):  # some at a time
        await leases.repair()

    assert [it.key for it in await leases.list_user(late.user_id)] == [late]
    down.resume()


async def test_no_entry_is_written_later_for_a_lock_that_has_ended(
    cluster: Cluster, leases: Leases
) -> None:
    up, down, _ = cluster.nodes
    key = LeaseKey(cluster.code_at(up), cluster.book_at(up), cluster.user_at(down), "lock")
    down.pause()
    assert await granted(leases, key)
    other = Leases(cluster.url, timeout_ms=TIMEOUT_MS)
    await other.release(key)
    down.resume()
    await asyncio.sleep(SPARED_S + 0.05)
    await leases.repair()

    assert await leases.list_user(key.user_id) == []
    await other.close()


async def test_locks_that_are_not_granted_do_not_count_against_their_user(
    cluster: Cluster, leases: Leases
) -> None:
    up, down, _ = cluster.nodes
    user, book = cluster.user_at(up), cluster.book_at(up)
    await leases.ping()
    down.kill()
    for i in range(10):
        assert not await granted(leases, LeaseKey(cluster.code_at(down), book, user, f"lock-{i}"))

    assert await granted(leases, LeaseKey(cluster.code_at(up), book, user, "lock"))


async def test_a_master_that_is_back_is_used_again(cluster: Cluster, leases: Leases) -> None:
    node = cluster.nodes[1]
    key = LeaseKey(cluster.code_at(node), "book", "user", "lock")
    assert await granted(leases, key)
    node.pause()
    with pytest.raises(LocksUnavailable):
        await leases.admit(key, 2**42)
    node.resume()
    await asyncio.sleep(SPARED_S + 0.05)

    assert (await leases.admit(key, 2**42)).status is AdmitStatus.HELD


async def test_moving_slots_cost_no_call(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    redirections: set[type[Exception]] = set()
    follow = ClusterPipelines.redirected

    def recorded(self: ClusterPipelines, error: Exception) -> object:
        redirections.add(type(error))
        return follow(self, error)

    monkeypatch.setattr(ClusterPipelines, "redirected", recorded)
    leases = Leases(cluster.url, timeout_ms=PATIENT_MS)
    keys = [LeaseKey(f"CODE{i}", f"book-{i}", f"user-{i}", "lock") for i in range(24)]
    calls = failures = 0
    stopping = asyncio.Event()

    async def caller(key: LeaseKey) -> None:
        nonlocal calls, failures
        while not stopping.is_set():
            calls += 1
            try:
                taken = await acquire(leases, key, TTL_MS)
                assert taken.status is AcquireStatus.GRANTED
                admission = await leases.admit(key, taken.expire_ms)
                assert (admission.status, admission.permits_taken) == (AdmitStatus.HELD, 1)
                assert await leases.release(key)
            except LocksUnavailable:
                failures += 1

    def reshard() -> None:
        for turn in range(3):
            for key in keys[:12]:
                slot = cluster.slot_of(key.code)
                cluster.move_slot(slot, cluster.nodes[turn])

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(caller(key))
        await asyncio.to_thread(reshard)
        stopping.set()

    assert calls > 100
    assert failures == 0
    assert redirections == {MovedError, AskError, TryAgainError}
    # Each process learns the new owners by itself.
    late = Leases(cluster.url, timeout_ms=PATIENT_MS)
    assert all([await granted(late, key) for key in keys])
    await leases.close()
    await late.close()


async def test_a_replica_that_takes_over_is_found(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, replicas=1) as cluster:
        master = cluster.nodes[1]
        key = LeaseKey(cluster.code_at(master), "book", "user", "lock")
        leases = Leases(cluster.url, timeout_ms=TIMEOUT_MS)
        assert await granted(leases, key)
        master.kill()
        deadline_s = time.monotonic() + 60
        held = None
        while held is None:
            assert time.monotonic() < deadline_s
            with suppress(LocksUnavailable):
                held = await acquire(leases, key, TTL_MS)
        await leases.close()

    assert held.lock_id == "lock"


async def test_rate_limits_of_others_go_on_without_a_master(cluster: Cluster) -> None:
    windows = Windows(cluster.url, TIMEOUT_MS)
    events = LimitEvents()
    limits = CallerLimits(end_users="none", services="3/hour", peers="none")
    limiter = RateLimiter(limits, windows, events)
    down = cluster.nodes[0]
    callers = [service(f"caller-{i}") for i in range(60)]
    await limiter.admit(RateClass.READS, callers[0])
    down.kill()

    refused = 0
    for caller in callers:
        for _ in range(4):
            try:
                await limiter.admit(RateClass.READS, caller)
            except Exception:  # noqa: BLE001
                refused += 1
    await windows.close()

    assert 20 < refused < 60
    assert events.unchecked > 0
