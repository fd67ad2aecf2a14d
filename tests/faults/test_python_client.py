"""The Python client against a service that is killed, drained, overloaded and slow.

Every call succeeds, since the client repeats it, and the ledger has each redemption once.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg
import pytest
from faults.proxy import BLACK_HOLE, PASS, Proxy, Rule
from support.invariants import assert_adds_up
from support.service import Api, books, new_codes, unique
from support.service_process import environment_of, fetch, serving, workers_of
from support.waiting import until

from coupon_service.client import AsyncCouponClient, ClientSettings, CouponClient
from coupon_service.model import EventType

CALLERS: Final = 24
CODES: Final = 10_000
PAUSE_S: Final = 0.01

PATIENT: Final = ClientSettings(timeout_s=60, try_timeout_s=1.5)

REDEEMED: Final = """
    SELECT request_id, array_agg(event_id::text) FROM redemption_audit
    WHERE book_id = %s AND type = %s GROUP BY request_id
"""


class Service:
    """Two workers, and a proxy in front of them."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = environment
        self.proxy = Proxy(int(environment["COUPON_PORT"]))
        self._folder = folder
        self._running = ExitStack()

    @property
    def direct(self) -> str:
        """The address without the proxy."""
        return f"127.0.0.1:{self.environment['COUPON_PORT']}"

    def start(self) -> None:
        """Start it, and wait until it serves."""
        started = serving(self.environment, self._folder)
        self.process: subprocess.Popen[bytes] = self._running.enter_context(started)

    def stop(self) -> None:
        """Stop it with SIGTERM."""
        self._running.close()


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    server_folder: Path,
) -> Iterator[Service]:
    folder = server_folder / "client"
    folder.mkdir()
    with new_database() as database_url:
        environment = environment_of(database_url, redis_server_url) | {
            "COUPON_LOG_LEVEL": "warning",
            "COUPON_DRAIN_GRACE_MS": "200",
            # So few that callers are refused with OVERLOADED by and by.
            "COUPON_BATCH_MAX_SIZE": "2",
            "COUPON_QUEUE_MAX_SIZE": "4",
        }
        made = Service(environment, folder)
        with made.proxy:
            made.start()
            yield made
            made.stop()


class Shop:
    """Callers who redeem codes of a book, each once, inside `with`."""

    def __init__(self, service: Service, kind: str) -> None:
        with closing(Api(service.direct)) as api:
            stock = new_codes(CODES)
            self.book_id = api.book(codes=stock, lock_policy=books.LOCK_POLICY_OFF).book_id
        self.redeemed: dict[str, str] = {}
        """Redemption ids by request_id."""
        self.failures: list[BaseException] = []
        self._address = f"127.0.0.1:{service.proxy.port}"
        self._codes = iter(stock)
        self._closed = threading.Event()
        self._settings = replace(PATIENT, streams=4) if kind == "streamed" else PATIENT
        run = self._with_threads if kind == "blocking" else self._with_tasks
        self._thread = threading.Thread(target=run)

    def __enter__(self) -> Shop:
        self._thread.start()
        self.sells()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def sells(self) -> None:
        """Wait until calls succeed again."""
        before = len(self.redeemed)
        until(lambda: self.failures or len(self.redeemed) >= before + 2 * CALLERS, 20)

    def _with_threads(self) -> None:
        with CouponClient(self._address, settings=self._settings) as client:

            def caller() -> None:
                while not self._closed.is_set() and not self.failures:
                    try:
                        request_id = unique("request")
                        made = client.redeem_code(next(self._codes), "ann", request_id=request_id)
                        self.redeemed[request_id] = made.redemption.redemption_id
                    except Exception as error:  # noqa: BLE001 - for the test
                        self.failures.append(error)
                    time.sleep(PAUSE_S)

            callers = [threading.Thread(target=caller) for _ in range(CALLERS)]
            for it in callers:
                it.start()
            for it in callers:
                it.join()

    def _with_tasks(self) -> None:
        asyncio.run(self._tasks())

    async def _tasks(self) -> None:
        async with AsyncCouponClient(self._address, settings=self._settings) as client:

            async def caller() -> None:
                while not self._closed.is_set() and not self.failures:
                    try:
                        request_id = unique("request")
                        made = await client.redeem_code(
                            next(self._codes), "ann", request_id=request_id
                        )
                        self.redeemed[request_id] = made.redemption.redemption_id
                    except Exception as error:  # noqa: BLE001 - for the test
                        self.failures.append(error)
                    await asyncio.sleep(PAUSE_S)

            await asyncio.gather(*itertools.starmap(caller, [()] * CALLERS))


def killed(service: Service) -> Generator[None]:
    """One worker, then both."""
    for count in (1, 2):
        workers = workers_of(service.process)
        for worker in workers[:count]:
            worker.kill()
        until(lambda gone=workers[:count]: not {*gone} & {*workers_of(service.process)})
        yield


def drained(service: Service) -> Generator[None]:
    """The whole service ends, and another begins."""
    service.process.send_signal(signal.SIGTERM)
    service.stop()
    service.start()
    yield


def overloaded(service: Service) -> Generator[None]:
    """More callers than the workers take at a time."""
    until(lambda: 'reason="OVERLOADED"' in fetch(service.environment, "metrics"))
    yield


def slow(service: Service) -> Generator[None]:
    """The network is slow, then silent for longer than a try takes, then slow to answer."""
    for rule, holds_s in (
        (Rule(delay_s=0.2), 1.5),
        (BLACK_HOLE, 2.5),
        (Rule(hold_replies=True), 2.5),
    ):
        service.proxy.rule = rule
        time.sleep(holds_s)
        service.proxy.rule = PASS
        yield


def cut(service: Service) -> Generator[None]:
    """All connections are reset, again and again, at once and after some bytes."""
    for rule in (PASS, Rule(cut_after_bytes=3_000), Rule(cut_after_bytes=20_000), PASS):
        service.proxy.rule = rule
        for _ in range(3):
            service.proxy.cut()
            time.sleep(0.3)
        service.proxy.rule = PASS
        yield


@contextmanager
def _conserved(service: Service, kind: str) -> Generator[Shop]:
    """A shop, of whose redemptions each was made once, when it has closed without a failure."""
    with Shop(service, kind) as shop:
        yield shop
    assert shop.failures == []
    with psycopg.connect(service.environment["COUPON_DATABASE_URL"]) as connection:
        ledger = dict(connection.execute(REDEEMED, (shop.book_id, EventType.REDEEMED)).fetchall())
        assert ledger == {request_id: [it] for request_id, it in shop.redeemed.items()}
        assert_adds_up(connection, [shop.book_id])


@pytest.mark.parametrize("kind", ["blocking", "asynchronous", "streamed"])
@pytest.mark.parametrize(
    "fault", [killed, drained, overloaded, slow, cut], ids=lambda it: it.__name__
)
def test_every_redemption_is_made_once(
    service: Service, fault: Callable[[Service], Generator[None]], kind: str
) -> None:
    with _conserved(service, kind) as shop:
        for _ in fault(service):
            shop.sells()
