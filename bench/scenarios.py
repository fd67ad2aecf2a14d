"""What is measured: the loads, what they need beforehand, and what they have to leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from bench.conservation import Answers, check_book
from bench.ghz import scenario
from bench.prepare import make_book
from bench.rounds import NOOP, PER_REQUEST, SERVICE, Measured, Rounds, measure
from bench.stack import Server, Stack
from coupon_service.model import EventType


@dataclass(frozen=True, slots=True)
class Rival:
    """A server to compare with. `target`: how many times as fast the service is to be.

    `calls_share`: the part of the calls that it gets, for one that is slow.
    """

    server: str
    target: float
    calls_share: float = 1.0


@dataclass(slots=True)
class Bench:
    """The servers, and what is known of the books on them."""

    stack: Stack
    servers: dict[str, Server]
    channel: grpc.Channel
    answers: dict[str, Answers] = field(default_factory=dict[str, Answers])

    def book(self, name: str, codes: list[str], **fields: Any) -> str:
        """A new book whose sums are checked after each round."""
        book_id = make_book(self.channel, name, codes, **fields)
        self.answers[book_id] = Answers()
        return book_id


Config = Callable[[Bench, int], dict[str, Any]]
"""The load of a scenario with so many calls; called before each round."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load, and whom the service is compared with under it.

    `setup` makes what the load needs, and returns the book that it changes. `effect`: what each OK
    answer of a server with a database leaves in the ledger. `before_each`: called before each
    round, changes the load.
    """

    name: str
    title: str
    rivals: tuple[Rival, ...]
    setup: Callable[[Bench], str] | None = None
    effect: EventType | None = None
    effects_per_call: int = 1
    before_each: Callable[[Bench, dict[str, Any]], None] | None = None

    def run(self, bench: Bench, calls: int, rounds: int) -> Rounds:
        """Alternates, and checks after every round of a server with a database that sums hold.

        Raises BenchError when they do not.
        """
        book_id = self.setup(bench) if self.setup else ""
        contenders = {SERVICE: 1.0, **{it.server: it.calls_share for it in self.rivals}}
        conservation = ""
        for server in contenders:
            self._once(bench, server, max(calls // 10, 200), book_id)
        done: list[list[Measured]] = []
        for _ in range(rounds):
            measured: list[Measured] = []
            for server, share in contenders.items():
                measured.append(self._once(bench, server, int(calls * share), book_id))
                if book_id and server != NOOP:
                    url = bench.stack.postgres.url
                    conservation = check_book(url, book_id, bench.answers[book_id])
            done.append(measured)
        return Rounds(done, conservation)

    def _once(self, bench: Bench, server: str, calls: int, book_id: str) -> Measured:
        config = scenario(self.name)
        config["total"] = calls
        config["concurrency"] = min(config["concurrency"], calls)
        if self.before_each:
            self.before_each(bench, config)
        measured = measure(bench.stack, bench.servers[server], config)
        if self.effect is not None and server != NOOP:
            bench.answers[book_id].add(self.effect, measured.load, self.effects_per_call)
        return measured


CODES: Final = 20_000


def _hot(bench: Bench) -> str:
    return bench.book("hot", ["BENCHHOT"])


def _spread(bench: Bench) -> str:
    return bench.book("spread", [f"BENCHSPREAD{number}" for number in range(CODES)])


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
        title="RedeemCode, spread over 5,000 and more codes",
        rivals=(Rival(NOOP, 0.75), Rival(PER_REQUEST, 3.0, 0.25)),
        setup=_spread,
        effect=EventType.REDEEMED,
    ),
    Scenario(name="health", title="health Check", rivals=(Rival(NOOP, 0.9),)),
)
