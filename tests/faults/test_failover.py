"""A failover of PostgreSQL under load: what was acknowledged is there, and it goes on by itself."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest
from faults.stack import SETTINGS
from support.service import Api, ServerThread, books, new_codes, settings_for, unique
from support.standbys import replicated
from support.waiting import PATIENCE, until

CUSTOMERS: Final = 4
GAP_MAX_S: Final = 10.0
MOMENT_S: Final = 0.05
THAWED_S: Final = 3.0
"""How long the old primary is there again, and takes connections."""

MANY: Final = books.BookLimits(
    max_redemptions_per_code=1_000_000, max_redemptions_per_user_per_code=1_000_000
)
REDEMPTIONS: Final = "SELECT event_id::text FROM redemption_audit WHERE redemption_id IS NULL"


class Customers:
    """They redeem without a pause, and repeat what failed with its request_id."""

    def __init__(self, api: Api, code: str) -> None:
        self._api = api
        self._code = code
        self._ends = threading.Event()
        self.acknowledged: list[tuple[float, str]] = []
        """When, and which redemption."""

    def redeem(self) -> None:
        user = unique("user")
        while not self._ends.is_set():
            request = self._api.redeem_request(self._code, user)
            while not self._ends.is_set():
                try:
                    done = self._api.redemptions.RedeemCode(request, timeout=2.5)
                except grpc.RpcError:
                    time.sleep(MOMENT_S)
                    continue
                self.acknowledged.append((time.monotonic(), done.redemption.redemption_id))
                break

    def end(self) -> None:
        self._ends.set()

    @property
    def gap_s(self) -> float:
        """The longest time without an acknowledgement."""
        times = sorted(at for at, _ in self.acknowledged)
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@contextmanager
def customers_of(url: str, redis_url: str) -> Generator[Customers]:
    """Customers of a service on this database."""
    settings = settings_for(url, redis_url, **SETTINGS)
    with (
        ServerThread(settings) as running,
        closing(Api(running.address)) as api,
        ThreadPoolExecutor(CUSTOMERS) as pool,
    ):
        (code,) = new_codes(1)
        api.book(codes=[code], limits=MANY)
        customers = Customers(api, code)
        threads: list[Future[None]] = [pool.submit(customers.redeem) for _ in range(CUSTOMERS)]
        try:
            yield customers
        finally:
            customers.end()
        for thread in threads:
            thread.result()


def more(customers: Customers, count: int = 50) -> None:
    """Waits for so many more redemptions."""
    wanted = len(customers.acknowledged) + count
    until(lambda: len(customers.acknowledged) >= wanted, within_s=30)


def redeemed(url: str) -> set[Any]:
    with psycopg.connect(url) as connection:
        return {it for (it,) in connection.execute(REDEMPTIONS)}


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_a_standby_takes_over_and_nothing_acknowledged_is_lost(
    fault: str, redis_url: str, tmp_path: Path
) -> None:
    with replicated(tmp_path) as (primary, standby):
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        userinfo = primary.url.partition("@")[0]
        url = f"{userinfo}@{hosts}/postgres?target_session_attrs=read-write"
        with customers_of(url, redis_url) as customers:
            more(customers)
            if fault == "killed":
                primary.kill()
            else:
                primary.pause()
            standby.promote()
            more(customers)
            if fault == "frozen":
                primary.resume()
                time.sleep(THAWED_S)
        assert customers.gap_s < GAP_MAX_S * PATIENCE
        kept = redeemed(standby.url)
        assert {redemption for _, redemption in customers.acknowledged} <= kept
