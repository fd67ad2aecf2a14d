"""Checkout streams against calls: the same operations, with as many in flight.

ghz sends the messages of a stream without a pause, and does not look at what is answered: the sums
of the ledger say that all operations were carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.loads.ghz import percentile, scenario
from bench.loads.scenarios import CODES, Bench, spread_book
from bench.loads.shoppers import Visits, visit
from bench.measure.rounds import NOOP, SERVICE, Measured, measure
from coupon_service.model import EventType
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL

STREAMS: Final = 16
MESSAGES: Final = 1_000
"""Of a stream, as `checkout-streams.json` has it."""

OPERATIONS: Final = 64_000
"""Of a round, so that the streams that are left at its end count for little."""

NUMBER: Final = "{{slice (printf `%d` .TimestampUnixNano) 15}}"
"""Four digits that are others in each message."""


@dataclass(frozen=True, slots=True)
class Case:
    """Operations of one kind. `field`: of CheckoutOperation; `call`: the scenario of its method.

    `list_size`: operations of a message. `target`: the least ratio to the throughput of calls.
    """

    title: str
    field: str
    call: str
    code: str
    effect: EventType | None = EventType.REDEEMED
    list_size: int = 1
    target: float | None = 2.0


CASES: Final = (
    Case("RedeemCode, another code each", "redeem_code", "redeem-spread", f"BENCHSPREAD1{NUMBER}"),
    Case("RedeemCode, one hot code", "redeem_code", "redeem-hot", "BENCHSTREAM"),
    Case(
        "RedeemCode, one hot code, lists of 8",
        "redeem_code",
        "redeem-hot",
        "BENCHSTREAM",
        list_size=8,
        target=None,
    ),
    Case("LockCode", "lock_code", "lock", f"BENCHSTREAMLOCK1{NUMBER}", EventType.LOCKED),
    Case("ValidateCode", "validate_code", "validate", f"BENCHSPREAD1{NUMBER}", None),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Operations per second, and CPU time of each in microseconds, round by round."""

    per_s: list[float]
    server_us: list[float]
    postgres_us: list[float]
    client_us: list[float]


@dataclass(frozen=True, slots=True)
class Compared:
    """A case: over streams, as calls, and as calls of the no-op server."""

    title: str
    target: float | None
    streams: Figures
    calls: Figures
    noop: Figures


@dataclass(frozen=True, slots=True)
class StreamResults:
    """All cases."""

    compared: list[Compared]
    conservation: list[str]


def streams(bench: Bench, rounds: int) -> StreamResults:
    """Each case over streams, as calls and on the no-op server in turn. Raises BenchError."""
    names = [f"BENCHSTREAMLOCK{number}" for number in range(CODES)]
    books = {
        "redeem-spread": spread_book(bench),
        "validate": spread_book(bench),
        "redeem-hot": bench.book("stream", ["BENCHSTREAM"]),
        "lock": bench.book("stream-lock", names, lock_policy=LOCK_POLICY_OPTIONAL),
    }
    compared = [_compare(bench, case, books[case.call], rounds) for case in CASES]
    return StreamResults(compared, [bench.check(book_id) for book_id in set(books.values())])


def _compare(bench: Bench, case: Case, book_id: str, rounds: int) -> Compared:
    call = scenario(case.call)
    call |= {"data": call["data"] | {"code": case.code}, "total": OPERATIONS // 2}
    call["connections"] = STREAMS
    stream = over_streams(call["data"], case.field, case.list_size)
    ran: dict[str, list[tuple[Measured, int]]] = {"streams": [], "calls": [], "noop": []}
    for _ in range(rounds):
        for name, found in ran.items():
            is_stream = name == "streams"
            server = bench.servers[NOOP if name == "noop" else SERVICE]
            if case.effect is EventType.LOCKED:
                bench.flush_locks()
            measured = measure(bench.stack, server, stream if is_stream else call)
            per_call = MESSAGES * case.list_size if is_stream else 1
            if case.effect is not None and name != "noop":
                bench.answers[book_id].add(case.effect, measured.load, per_call)
            found.append((measured, measured.load.ok * per_call))
    return Compared(case.title, case.target, *map(_figures, ran.values()))


def over_streams(request: dict[str, Any], field: str, list_size: int) -> dict[str, Any]:
    """The configuration that sends such requests over streams, so many in a message."""
    config = scenario("checkout-streams")
    (example,) = config["data"]["operations"]
    operations: list[dict[str, Any]] = []
    for number in range(list_size):
        own = {**request}
        for name in ("user_id", "order_id", "request_id"):
            if name in own:
                own[name] = f"{own[name]}{number}".replace(".RequestNumber", ".TimestampUnixNano")
        operations.append({"tag": f"{example['tag'][:-1]}{number}", field: own})
    config["data"] = {"operations": operations}
    config["total"] = OPERATIONS // MESSAGES // list_size
    config["concurrency"] = config["connections"] = min(STREAMS, config["total"])
    return config


def _figures(ran: Sequence[tuple[Measured, int]]) -> Figures:
    return Figures(
        per_s=[count / it.load.seconds for it, count in ran],
        server_us=[it.server_cpu_s / count * 1e6 for it, count in ran],
        postgres_us=[it.postgres_cpu_s / count * 1e6 for it, count in ran],
        client_us=[it.load.cpu_s / count * 1e6 for it, count in ran],
    )


# --- latency ------------------------------------------------------------------------------------

TILL_RATE: Final = 1_000
TILL_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """A server under an open load. Times in milliseconds from when each operation was due."""

    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True)
class TillLatency:
    """Shoppers over streams, as calls, and as calls of the no-op server, round by round."""

    streams: list[Latency]
    calls: list[Latency]
    noop: list[Latency]
    conservation: str


def stream_latency(bench: Bench, rounds: int) -> TillLatency:
    """Shoppers who validate, lock and redeem, at 1,000 operations a second, over 16 connections."""
    names = [f"BENCHTILLSTREAM{number}" for number in range(CODES // 10)]
    book_id = bench.book("till-stream", names, lock_policy=LOCK_POLICY_OPTIONAL)
    found: dict[str, list[Latency]] = {"streams": [], "calls": [], "noop": []}
    for _ in range(rounds):
        for name, latencies in found.items():
            visits = asyncio.run(
                visit(
                    bench.servers[NOOP if name == "noop" else SERVICE].address,
                    names,
                    rate=TILL_RATE,
                    seconds=TILL_SECONDS,
                    connections=STREAMS,
                    streamed=name == "streams",
                )
            )
            if name != "noop":
                bench.answers[book_id].ok[EventType.LOCKED] += visits.ok["lock_code"]
                bench.answers[book_id].ok[EventType.REDEEMED] += visits.ok["redeem_code"]
            latencies.append(_latency(visits))
    return TillLatency(**found, conservation=bench.check(book_id))


def _latency(visits: Visits) -> Latency:
    return Latency(
        per_s=len(visits.latencies_ms) / visits.seconds,
        p50_ms=percentile(visits.latencies_ms, 50),
        p95_ms=percentile(visits.latencies_ms, 95),
        p99_ms=percentile(visits.latencies_ms, 99),
        errors=visits.errors,
    )
