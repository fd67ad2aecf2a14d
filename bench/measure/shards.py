"""Redemptions of businesses that lie in several shards, against the same with one shard."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Final

from bench.loads.caller import channel_to
from bench.loads.ghz import scenario
from bench.loads.scenarios import CODES, Bench
from bench.measure.rounds import SERVICE, Measured, measure
from bench.servers.stack import BenchError, stack
from coupon_service.model import EventType
from coupon_service.model.scopes import scope_of_business, shard_of_scope

BUSINESSES: Final = 4
"""One in each quarter of the buckets, so as many in each shard as in the others."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """So many shards on so many servers, and how many calls are in flight."""

    title: str
    shards: int
    databases: int
    in_flight: int


ARRANGEMENTS: Final = (
    Arrangement("one shard", 1, 1, 1_000),
    Arrangement("four shards, four times the calls in flight", 4, 1, 4_000),
    Arrangement("four shards", 4, 1, 1_000),
    Arrangement("two shards on two servers, twice the calls in flight", 2, 2, 2_000),
)
"""All are compared with the first."""


@dataclass(frozen=True, slots=True)
class Sharded:
    """An arrangement: medians of its rounds, CPU times in microseconds of a call; `ratios`: of its
    throughput to that of one shard, in each round."""

    title: str
    per_s: float
    p95_ms: float
    server_us: float
    postgres_us: float
    redis_us: float
    client_us: float
    ratios: list[float]


@dataclass(frozen=True, slots=True)
class ShardResults:
    """All arrangements."""

    arrangements: list[Sharded]
    conservation: str


def shards(bench: Bench, rounds: int) -> ShardResults:
    """RedeemCode of another code each time in all arrangements in turn, on servers of their own.

    Raises BenchError.
    """
    with ExitStack() as running:
        made = [running.enter_context(_started(each, bench.stack.workers)) for each in ARRANGEMENTS]
        for each, arranged in zip(ARRANGEMENTS, made, strict=True):  # warm-up
            _once(arranged, each.in_flight, CODES // 4)
        done = [
            [
                _once(arranged, each.in_flight, CODES)
                for each, arranged in zip(ARRANGEMENTS, made, strict=True)
            ]
            for _ in range(rounds)
        ]
        checked = [it.check(book_id) for it in made for book_id in it.books.values()]
    found = [
        _figures(each.title, [it[place] for it in done], [it[0] for it in done])
        for place, each in enumerate(ARRANGEMENTS)
    ]
    return ShardResults(found, f"{len(checked)} books, such as {checked[-1]}")


@contextmanager
def _started(arrangement: Arrangement, workers: int) -> Generator[Bench]:
    """The service on servers of its own, with a book of each business."""
    with ExitStack() as running:
        servers = running.enter_context(stack(workers, arrangement.shards, arrangement.databases))
        service = running.enter_context(servers.service())
        channel = running.enter_context(channel_to(service.address))
        bench = Bench(servers, {SERVICE: service}, channel)
        for number in range(BUSINESSES):
            codes = [f"BENCHSHARD{number}X{it}" for it in range(CODES)]
            bench.book(f"shard-{number}", codes, business_id=_business(number))
        yield bench


def _business(quarter: int) -> str:
    """A business in this quarter of the buckets."""
    names = (f"bench-{number}" for number in count())
    return next(it for it in names if shard_of_scope(scope_of_business(it), BUSINESSES) == quarter)


def _once(bench: Bench, in_flight: int, calls: int) -> Measured:
    config = scenario("redeem-spread")
    config |= {"total": calls, "concurrency": in_flight}
    config["data"] = [
        config["data"]
        | {"code": f"BENCHSHARD{number}X{{{{.RequestNumber}}}}", "business_id": _business(number)}
        for number in range(BUSINESSES)
    ]
    measured = measure(bench.stack, bench.servers[SERVICE], config)
    if measured.load.ok != calls:
        raise BenchError(f"Not all calls were answered OK: {measured.load.statuses}.")
    for book_id in bench.books.values():
        bench.answers[book_id].ok[EventType.REDEEMED] += calls // BUSINESSES
    return measured


def _figures(title: str, rounds: Sequence[Measured], first: Sequence[Measured]) -> Sharded:
    return Sharded(
        title=title,
        per_s=median(it.load.per_s for it in rounds),
        p95_ms=median(it.load.p95_ms for it in rounds),
        server_us=median(it.server_cpu_s / it.load.calls * 1e6 for it in rounds),
        postgres_us=median(it.postgres_cpu_s / it.load.calls * 1e6 for it in rounds),
        redis_us=median(it.redis_cpu_s / it.load.calls * 1e6 for it in rounds),
        client_us=median(it.load.cpu_s / it.load.calls * 1e6 for it in rounds),
        ratios=[it.load.per_s / other.load.per_s for it, other in zip(rounds, first, strict=True)],
    )
