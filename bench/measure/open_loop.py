"""Latency against load: calls that are sent when they are due, whether earlier ones were answered.

A closed loop hides what a caller who does not wait for answers finds: its load stops while the
server is slow. Here the rate is given, in shares of what a closed loop reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bench.loads.ghz import Load, run_ghz, scenario
from bench.loads.scenarios import CODES, Bench
from bench.measure.rounds import NOOP, SERVICE
from coupon_service.model import EventType

SHARES: Final = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Of the calls per second that the service answers in a closed loop."""

CONNECTIONS: Final = 16
SECONDS: Final = 5
CLOSED_LOOP_CALLS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Point:
    """A server under a rate, in calls per second. Times in milliseconds."""

    rate: float
    sent_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """The points of each server, by rising rate. `closed_per_s`: the service's in a closed loop."""

    connections: int
    closed_per_s: float
    points: dict[str, list[Point]]
    conservation: str


def open_loop(bench: Bench, rounds: int) -> OpenLoop:  # noqa: ARG001
    """RedeemCode of one hot code, on the service and on the no-op server in turn."""
    book_id = bench.book("open-loop", ["BENCHOPEN"])
    config = scenario("redeem-hot")
    config |= {"data": config["data"] | {"code": "BENCHOPEN"}}

    def run(server: str, changes: dict[str, Any]) -> Load:
        load = run_ghz(config | changes, bench.servers[server].address, bench.stack.folder)
        if server == SERVICE:
            bench.answers[book_id].add(EventType.REDEEMED, load)
        return load

    closed_per_s = run(SERVICE, {"total": min(CLOSED_LOOP_CALLS, CODES)}).per_s
    points: dict[str, list[Point]] = {SERVICE: [], NOOP: []}
    for share in SHARES:
        rate = round(share * closed_per_s)
        for server, found in points.items():
            load = run(
                server,
                {
                    "async": True,
                    "rps": rate,
                    "total": rate * SECONDS,
                    "concurrency": CONNECTIONS,
                    "connections": CONNECTIONS,
                },
            )
            found.append(_point(rate, load))
    return OpenLoop(CONNECTIONS, closed_per_s, points, bench.check(book_id))


def _point(rate: float, load: Load) -> Point:
    return Point(
        rate=rate,
        sent_per_s=load.calls / load.seconds,
        p50_ms=load.p50_ms,
        p95_ms=load.p95_ms,
        p99_ms=load.p99_ms,
        errors=load.calls - load.ok,
    )
