"""Scenarios: loads, their preparation, and their effects in the ledger."""

# redis-py does not type its keyword arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import redis

from bench.loads.ghz import messages, scenario
from bench.loads.prepare import BATCH_SIZE, assign_codes, batch_request, lock_codes, make_book
from bench.measure.conservation import Answers, check_book
from bench.measure.rounds import NOOP, PER_REQUEST, SERVICE, Measured, Rounds, measure
from bench.servers.stack import Server, Stack
from coupon_service.model import EventType
from coupon_service.v1.coupon_book_service_pb2 import (
    ASSIGNMENT_POLICY_REQUIRED,
    LOCK_POLICY_OPTIONAL,
    ORDER_POLICY_COMBINABLE,
    BookLimits,
)

CODES: Final = 20_000
"""Codes of a book, and the most calls of a round: no round uses a code twice."""


@dataclass(slots=True)
class Bench:
    """The running servers, their books, and the answers about them."""

    stack: Stack
    servers: dict[str, Server]
    channel: grpc.Channel
    books: dict[str, str] = field(default_factory=dict[str, str])
    answers: dict[str, Answers] = field(default_factory=dict[str, Answers])
    lock_tokens: list[str] = field(default_factory=list[str])

    def book(self, name: str, codes: list[str] | int, **fields: Any) -> str:
        """The id of a book, which is created when missing."""
        if name not in self.books:
            book_id = self.books[name] = make_book(self.channel, name, codes, **fields)
            self.answers[book_id] = Answers()
        return self.books[name]

    def check(self, book_id: str) -> str:
        """The compared sums as one line. Raises BenchError when they differ."""
        return check_book(self.stack.database_of(book_id), book_id, self.answers[book_id])

    def flush_locks(self) -> None:
        """Flush Redis, so that all codes can be locked again."""
        with redis.Redis.from_url(self.stack.redis.url) as client:
            client.flushdb()


@dataclass(frozen=True, slots=True)
class Rival:
    """A reference server. `target`: the least ratio of throughput that the service should reach.

    `calls_share`: its share of the calls, where it is slow.
    """

    server: str
    target: float
    calls_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load, and the servers that the service is compared with.

    `setup` creates what the load needs, and returns the id of its book. `effect`: the event that
    each OK answer of a server with a database writes, `effects_per_call` times. `prepare` is called
    before each round with the bench, the server, the book and the number of calls, and returns
    overrides of the configuration, whose data may be an example only. `calls_share`: the share of
    the calls that a round has.
    """

    name: str
    title: str
    rivals: tuple[Rival, ...]
    setup: Callable[[Bench], str]
    effect: EventType | None = None
    effects_per_call: int = 1
    prepare: Callable[[Bench, str, str, int], dict[str, Any]] | None = None
    calls_share: float = 1.0

    def run(self, bench: Bench, calls: int, rounds: int) -> Rounds:
        """Run alternating rounds, with a check of the sums after each round with a database.

        Raises BenchError when they differ.
        """
        book_id = self.setup(bench)
        shares = {SERVICE: 1.0, **{it.server: it.calls_share for it in self.rivals}}
        counts = {it: max(int(calls * self.calls_share * share), 8) for it, share in shares.items()}
        for server, count in counts.items():  # warm-up
            self._once(bench, server, max(count // 10, 8), book_id)
        done: list[list[Measured]] = []
        conservation = ""
        for _ in range(rounds):
            measured: list[Measured] = []
            for server, count in counts.items():
                measured.append(self._once(bench, server, count, book_id))
                if self.effect is not None and server != NOOP:
                    conservation = bench.check(book_id)
            done.append(measured)
        return Rounds(done, conservation)

    def _once(self, bench: Bench, server: str, calls: int, book_id: str) -> Measured:
        config = scenario(self.name)
        config["total"] = calls
        for bound in ("concurrency", "connections"):
            config[bound] = min(config[bound], calls)
        if self.prepare is not None:
            config |= self.prepare(bench, server, book_id, calls)
        measured = measure(bench.stack, bench.servers[server], config)
        if self.effect is not None and server != NOOP:
            bench.answers[book_id].add(self.effect, measured.load, self.effects_per_call)
        return measured


# --- books --------------------------------------------------------------------------------------


def _nothing(bench: Bench) -> str:  # noqa: ARG001
    return ""


def _hot(bench: Bench) -> str:
    return bench.book("hot", ["BENCHHOT"])


def spread_book(bench: Bench) -> str:
    """Codes that bearers may redeem any number of times."""
    return bench.book("spread", [f"BENCHSPREAD{number}" for number in range(CODES)])


def _orders(bench: Bench) -> str:
    """Codes that go with others on an order, of a book with a budget, which everybody waits for."""
    codes = [f"BENCHORDER{number}" for number in range(CODES)]
    limits = BookLimits(max_redemptions_per_code=0, max_discount_minor=10**18)
    return bench.book("orders", codes, limits=limits, order_policy=ORDER_POLICY_COMBINABLE)


def _lockable(bench: Bench) -> str:
    codes = [f"BENCHLOCK{number}" for number in range(CODES)]
    return bench.book("lock", codes, uses=1, lock_policy=LOCK_POLICY_OPTIONAL)


def _assignable(bench: Bench) -> str:
    policy = ASSIGNMENT_POLICY_REQUIRED
    return bench.book("assign", 30 * CODES, uses=1, assignment_policy=policy)


def _held(bench: Bench) -> str:
    if "held" not in bench.books:
        policy = ASSIGNMENT_POLICY_REQUIRED
        book_id = bench.book("held", 3 * CODES, uses=1, assignment_policy=policy)
        for _ in range(2):
            assign_codes(bench.channel, book_id, [f"holder-{number}" for number in range(CODES)])
    return bench.books["held"]


def batch_book(bench: Bench) -> str:
    """Codes that are redeemed in batches of 1,000."""
    return bench.book("batch", [f"BENCHBATCH{number}" for number in range(CODES)])


# --- before a round -----------------------------------------------------------------------------


def _lock(bench: Bench, server: str, book_id: str, calls: int) -> dict[str, Any]:  # noqa: ARG001
    if server == SERVICE:
        bench.flush_locks()
    return {}


def _unlock(bench: Bench, server: str, book_id: str, calls: int) -> dict[str, Any]:
    """Lock tokens that the service has just granted. The no-op server gets the same ones."""
    if server == SERVICE:
        bench.flush_locks()
        users = {f"BENCHLOCK{number}": uuid.uuid4().hex for number in range(calls)}
        bench.lock_tokens = asyncio.run(lock_codes(bench.servers[SERVICE].address, users))
        bench.answers[book_id].ok[EventType.LOCKED] += calls
    request = scenario("unlock")["data"]
    return {"data": [{**request, "lock_token": token} for token in bench.lock_tokens]}


def _assign(bench: Bench, server: str, book_id: str, calls: int) -> dict[str, Any]:  # noqa: ARG001
    return {"data": {**scenario("assign-random")["data"], "book_id": book_id}}


def _batch(bench: Bench, server: str, book_id: str, calls: int) -> dict[str, Any]:  # noqa: ARG001
    requests = (batch_request(call * BATCH_SIZE % CODES) for call in range(calls))
    return messages(bench.stack.folder / "batches", requests)


# --- the table ----------------------------------------------------------------------------------

SCENARIOS: Final = (
    Scenario(
        name="redeem-hot",
        title="RedeemCode, one hot code",
        rivals=(Rival(NOOP, 0.85), Rival(PER_REQUEST, 8.0, 0.1)),
        setup=_hot,
        effect=EventType.REDEEMED,
    ),
    Scenario(
        name="redeem-spread",
        title="RedeemCode, a different code per call",
        rivals=(Rival(NOOP, 0.75), Rival(PER_REQUEST, 3.0, 0.25)),
        setup=spread_book,
        effect=EventType.REDEEMED,
    ),
    Scenario(
        name="redeem-orders",
        title="RedeemCode, a different code per call, COMBINABLE with a budget",
        rivals=(Rival(NOOP, 0.5),),
        setup=_orders,
        effect=EventType.REDEEMED,
    ),
    Scenario(
        name="health",
        title="health Check",
        rivals=(Rival(NOOP, 0.9),),
        setup=_nothing,
    ),
    Scenario(
        name="lock",
        title="LockCode",
        rivals=(Rival(NOOP, 0.55),),
        setup=_lockable,
        effect=EventType.LOCKED,
        prepare=_lock,
    ),
    Scenario(
        name="unlock",
        title="UnlockCode",
        rivals=(Rival(NOOP, 0.55),),
        setup=_lockable,
        effect=EventType.UNLOCKED,
        prepare=_unlock,
    ),
    Scenario(
        name="assign-random",
        title="AssignRandomCode, 600,000 codes in the book",
        rivals=(Rival(NOOP, 0.6),),
        setup=_assignable,
        effect=EventType.ASSIGNED,
        prepare=_assign,
    ),
    Scenario(
        name="validate",
        title="ValidateCode",
        rivals=(Rival(NOOP, 0.7),),
        setup=spread_book,
    ),
    Scenario(
        name="list-user-coupons",
        title="ListUserCoupons, two coupons each",
        rivals=(Rival(NOOP, 0.7),),
        setup=_held,
    ),
    Scenario(
        name="get-code",
        title="GetCode",
        rivals=(Rival(NOOP, 0.7),),
        setup=spread_book,
    ),
    Scenario(
        name="batch-redeem",
        title="BatchRedeemCodes, 1,000 codes per call",
        rivals=(),
        setup=batch_book,
        effect=EventType.REDEEMED,
        effects_per_call=BATCH_SIZE,
        prepare=_batch,
        calls_share=0.002,
    ),
)
