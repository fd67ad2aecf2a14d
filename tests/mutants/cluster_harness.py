"""What has to catch the mutants of how a Redis Cluster is used."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from model.clock import Clock, clocked_server
from mutants.harness import CALLERS, UNLIMITED, Stack
from support.calls import locks_of, reason_or_ok, tried
from support.redis_cluster import Cluster, redis_cluster
from support.redis_sentinels import SharedPasswordRedis
from support.service import Api, ServerThread, all_at_once, books, new_codes, unique
from support.waiting import until

TIMEOUT_MS = 1_000
CALLS = 4


class _Shop(NamedTuple):
    """A book with codes, on a service with a cluster of its own."""

    cluster: Cluster
    server: ServerThread
    api: Api
    book_id: str
    codes: list[str]

    @property
    def of_book(self) -> SharedPasswordRedis:
        """The master of the index of the book."""
        return self.cluster.master_of(f"coupon:book:{{{self.book_id}}}:locks")

    def codes_at(self, master: SharedPasswordRedis) -> set[str]:
        masters = self.cluster.masters_of(f"{{{it}}}" for it in self.codes)
        return {it for it, each in zip(self.codes, masters, strict=True) if each is master}

    def lock(self, code: str) -> str:
        return tried(lambda: self.api.lock(code, unique("user")))


@contextmanager
def _shop(it: Stack) -> Generator[_Shop]:
    with (
        TemporaryDirectory() as folder,
        redis_cluster(Path(folder)) as cluster,
        clocked_server(
            it.database_url, cluster.url, Clock(cluster.url), redis_timeout_ms=TIMEOUT_MS
        ) as server,
        closing(Api(server.address)) as api,
    ):
        codes = new_codes(2 * CALLERS)
        book = api.book(codes=codes, lock_policy=books.LOCK_POLICY_OPTIONAL, limits=UNLIMITED)
        shop = _Shop(cluster, server, api, book.book_id, codes)
        assert {shop.lock(code) for code in codes} == {"OK"}
        yield shop


def codes_of_a_dead_master(it: Stack) -> None:
    """A dead master fails the codes of its slots, and nothing else."""
    with _shop(it) as shop:
        dead = shop.of_book
        own = shop.codes_at(dead)
        dead.kill()
        calls = [functools.partial(shop.api.lock, it, unique("user")) for it in shop.codes]
        found = zip(shop.codes, map(reason_or_ok, all_at_once(calls)), strict=True)
        assert {code for code, reason in found if reason != "OK"} == own


def calls_beside_a_silent_master(it: Stack) -> None:
    """Once a master is known to be silent nobody waits for it; its index is written later."""
    with _shop(it) as shop:
        silent = shop.of_book
        own = shop.codes_at(silent)
        others = [code for code in shop.codes if code not in own][:CALLS]
        silent.pause()
        for code in list(own)[:2]:
            assert shop.lock(code) == "LOCKS_UNAVAILABLE"
        user, started_s = unique("user"), time.monotonic()
        assert [tried(lambda it=it: shop.api.lock(it, user)) for it in others] == ["OK"] * CALLS
        took_s = time.monotonic() - started_s
        silent.resume()
        assert took_s < CALLS * TIMEOUT_MS / 1_000 * 0.9

        def unlisted() -> set[str]:
            shop.server.run(shop.server.server._leases.repair())
            known = locks_of(shop.api, book_id=shop.book_id)
            return set(others) - {lock.code for lock in known if lock.user_id == user}

        until(lambda: shop.lock(next(iter(own))) == "OK")
        until(lambda: not unlisted(), 1.5, unlisted)


def calls_after_a_slot_has_moved(it: Stack) -> None:
    """A slot is asked for where it is."""
    with _shop(it) as shop:
        code = shop.codes[0]
        source = shop.cluster.master_of(f"{{{code}}}")
        target = next(it for it in shop.cluster.nodes if it is not source)
        shop.cluster.move_slot(shop.cluster.slot_of(code), target)
        assert shop.lock(code) == "OK"
