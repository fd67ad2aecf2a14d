"""Calls to the service while one of three masters of a Redis Cluster is down."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.calls import locks_of, tried
from support.redis_cluster import Cluster, redis_cluster
from support.service import Api, ServerThread, books, new_codes, settings_for, unique
from support.waiting import until

CALLS = 1_000
CALLERS = 16
TIMEOUT_MS = 2_000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with redis_cluster(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def server(database_url: str, cluster: Cluster) -> Iterator[ServerThread]:
    settings = settings_for(database_url, cluster.url, redis_timeout_ms=TIMEOUT_MS)
    with ServerThread(settings) as running:
        yield running


@pytest.fixture
def api(server: ServerThread) -> Iterator[Api]:
    with closing(Api(server.address)) as api:
        yield api


def counted(server: ServerThread, what: str) -> float:
    return server.registry.get_sample_value(f"coupon_lock_index_{what}_total") or 0.0


def listed(api: Api, book_id: str) -> set[str]:
    """The codes of the locks in the index of a book."""
    return {lock.code for lock in locks_of(api, book_id=book_id)}


def timed(calls: Sequence[Callable[[], object]]) -> list[tuple[str, float]]:
    """OK or the reason of each call, and how long it took."""

    def one(call: Callable[[], object]) -> tuple[str, float]:
        started_s = time.monotonic()
        return tried(call), time.monotonic() - started_s

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(one, calls))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_dead_master_fails_the_calls_for_its_codes_only_and_slows_no_others(
    cluster: Cluster, server: ServerThread, api: Api, how: str
) -> None:
    codes, users = new_codes(CALLS), [unique("user") for _ in range(CALLS)]
    book_id = api.book(codes=codes, lock_policy=books.LOCK_POLICY_OPTIONAL).book_id
    spare = new_codes(CALLERS)
    api.import_codes(book_id, spare)
    timed([lambda it=it: api.lock(it, unique("user")) for it in spare])
    # That which also has the index of the book of all codes.
    dead = cluster.master_of(f"coupon:book:{{{book_id}}}:locks")
    masters = zip(codes, cluster.masters_of(f"{{{it}}}" for it in codes), strict=True)
    own = {code for code, master in masters if master is dead}
    if how == "killed":
        dead.kill()
    else:
        dead.pause()
    # Nobody can know it before the first calls have failed.
    on_it = itertools.cycle(own)
    until(lambda: [tried(lambda: api.lock(next(on_it), "early")) for _ in "12"] != ["OK"] * 2)

    def lock_or_redeem(i: int) -> Any:
        return (api.lock if i % 2 else api.redeem)(codes[i], users[i])

    done = timed([lambda i=i: lock_or_redeem(i) for i in range(CALLS)])

    failed = {code for code, (reason, _) in zip(codes, done, strict=True) if reason != "OK"}
    assert failed == own
    assert {reason for reason, _ in done} == {"OK", "LOCKS_UNAVAILABLE"}
    assert CALLS / 5 < len(failed) < CALLS / 2
    # A call that waits for a silent master takes longer, and on a busy machine a few others do.
    assert sorted(took_s for _, took_s in done)[CALLS * 9 // 10] < TIMEOUT_MS / 1_000
    locked = {code for i, code in enumerate(codes) if i % 2 and code not in own}
    assert counted(server, "missed") >= len(locked)  # each in the index of its book

    if how == "killed":
        dead.start()
    else:
        dead.resume()
    until(lambda: tried(lambda: listed(api, book_id)) == "OK")
    until(lambda: locked <= listed(api, book_id), why_not=lambda: locked - listed(api, book_id))
    assert counted(server, "repaired") >= len(locked)
    again = timed([lambda it=it: api.redeem(it, unique("user")) for it in sorted(own)])
    assert {reason for reason, _ in again} <= {"OK", "CODE_LOCKED"}
