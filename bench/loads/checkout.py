"""The checkout: an open load of shoppers through the public API, sent by ghz.

A shopper validates a code, locks it, and redeems it with the lock token. Every seventh unlocks
instead, and every twentieth redemption is rolled back. One ghz sends one kind of call, and none
that needs an earlier answer. So one ghz runs for each kind, all at the same time, with the kind's
share of the rate and of the connections. Locks and redemptions that calls need are made beforehand,
and no two calls of a run use the same code.

With `rps` and `async`, the clock of ghz ticks at the rate, and each tick sends a call, whether
earlier calls were answered or not. ghz times a call from its hand-over to gRPC. Here latency counts
from the tick at which the call was due, so that a ghz which is late hides nothing (no coordinated
omission): the n-th call was due n ticks after the first. ghz does not report when its clock
started; the call with the least delay is taken as punctual.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from bench.loads.ghz import UNKNOWN, Report, messages, percentile, run_together, scenario
from bench.loads.prepare import lock_codes, redeem_codes
from bench.measure.conservation import Answers
from bench.servers.stack import BenchError
from coupon_service.model import EventType
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money

UNLOCK_SHARE: Final = 1 / 7
ROLL_BACK_SHARE: Final = 1 / 20
CALLS_OF_SHOPPER: Final = {
    "validate": 1.0,
    "lock": 1.0,
    "redeem": 1 - UNLOCK_SHARE,
    "unlock": UNLOCK_SHARE,
    "roll-back": (1 - UNLOCK_SHARE) * ROLL_BACK_SHARE,
}
"""Average number of calls of each kind per shopper."""

EFFECTS: Final = {
    "lock": EventType.LOCKED,
    "redeem": EventType.REDEEMED,
    "unlock": EventType.UNLOCKED,
    "roll-back": EventType.ROLLED_BACK,
}
RATE_MIN: Final = 100
"""In calls per second. Rates are whole numbers; below it a kind could get 0, which means unlimited
to ghz."""

CONNECTIONS: Final = 1_000
WARM_UP_S: Final = 2.0
PRICE: Final = Money(amount_minor=4_000, currency_code="EUR")


@dataclass(frozen=True, slots=True)
class Shoppers:
    """One run of shoppers: a configuration of ghz for each kind of call."""

    rate: int
    configs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run.

    `rate`: calls per second that were due; `sent_per_s`: that ghz sent. Latencies are those of OK
    answers, in milliseconds. `late_p99_ms`: the delay of ghz, which is part of the latency. These
    exclude the warm-up; `ok`, `unknown` (calls with an unknown outcome) and `errors` include it.
    `client_cores`: CPU time of ghz per second, its start included.
    """

    rate: int
    sent_per_s: float
    calls: int
    ok: dict[str, int]
    unknown: dict[str, int]
    errors: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p95_ms_of: dict[str, float]
    late_p99_ms: float
    client_cores: float


@dataclass(frozen=True, slots=True)
class CheckoutLoad:
    """A book of the service whose codes any number of shoppers may use, and the load on it."""

    codes: Sequence[str]
    channel: grpc.Channel
    address: str
    folder: Path
    answers: Answers

    def shop(self, rate: int, seconds: float) -> Summary:
        """Send shoppers to the service, for `seconds` after the warm-up."""
        return self.send(self.prepare(rate, seconds))

    def prepare(self, rate: int, seconds: float) -> Shoppers:
        """Create the locks and redemptions that the calls need, and the requests.

        Raises BenchError when there are fewer codes than calls.
        """
        rates = dict(zip(CALLS_OF_SHOPPER, split(rate), strict=True))
        counts = {kind: math.ceil(it * (WARM_UP_S + seconds)) for kind, it in rates.items()}
        if sum(counts.values()) > len(self.codes):
            raise BenchError(f"{len(self.codes)} codes are too few for {rate} calls per second.")
        unused = iter(self.codes)
        codes = {kind: list(islice(unused, count)) for kind, count in counts.items()}
        requests = self._requests(codes)
        configs: dict[str, dict[str, Any]] = {}
        for (kind, count), connections in zip(counts.items(), split(CONNECTIONS), strict=True):
            configs[kind] = {
                **scenario(f"checkout-{kind}"),
                **messages(self.folder / f"checkout-{kind}", requests[kind]),
                "total": count,
                "rps": rates[kind],
                "concurrency": min(connections, count),
                "connections": min(connections, count),
            }
        return Shoppers(rate, configs)

    def _requests(self, codes: Mapping[str, Sequence[str]]) -> dict[str, Iterator[Message]]:
        """The requests of each kind, each with its own code, user and order."""
        run = uuid.uuid4().hex[:12]
        users = {code: f"{run}-{code}" for each in codes.values() for code in each}
        locked = {code: users[code] for kind in ("redeem", "unlock") for code in codes[kind]}
        tokens = dict(zip(locked, asyncio.run(lock_codes(self.address, locked)), strict=True))
        redemptions = zip(
            codes["roll-back"], redeem_codes(self.channel, codes["roll-back"]), strict=True
        )
        self.answers.ok[EventType.LOCKED] += len(tokens)
        self.answers.ok[EventType.REDEEMED] += len(codes["roll-back"])

        def order(code: str) -> dict[str, Any]:
            user = users[code]
            return {"code": code, "user_id": user, "order_id": user, "order_amount": PRICE}

        return {
            "validate": (pb.ValidateCodeRequest(**order(it)) for it in codes["validate"]),
            "lock": (
                pb.LockCodeRequest(code=it, user_id=users[it], request_id=users[it])
                for it in codes["lock"]
            ),
            "redeem": (
                pb.RedeemCodeRequest(**order(it), lock_token=tokens[it], request_id=users[it])
                for it in codes["redeem"]
            ),
            "unlock": (
                pb.UnlockCodeRequest(lock_token=tokens[it], request_id=users[it])
                for it in codes["unlock"]
            ),
            "roll-back": (
                pb.RollbackRedemptionRequest(redemption_id=it, request_id=users[code])
                for code, it in redemptions
            ),
        }

    def send(self, shoppers: Shoppers) -> Summary:
        """Send the shoppers to the service."""
        summary = send(shoppers, self.address, self.folder)
        for kind, event in EFFECTS.items():
            self.answers.ok[event] += summary.ok[kind]
            self.answers.unknown[event] += summary.unknown[kind]
        return summary


def split(total: int) -> list[int]:
    """The share of each kind of call: whole numbers whose sum is the total."""
    parts = accumulate(CALLS_OF_SHOPPER.values(), initial=0.0)
    shopper = sum(CALLS_OF_SHOPPER.values())
    return [upper - lower for lower, upper in pairwise(round(total * it / shopper) for it in parts)]


def send(shoppers: Shoppers, address: str, folder: Path) -> Summary:
    """Send the shoppers to a server. Raises BenchError."""
    reports, cpu_s = run_together(list(shoppers.configs.values()), address, folder)
    of_kind = dict(zip(shoppers.configs, reports, strict=True))
    for kind, config in shoppers.configs.items():
        if of_kind[kind]["count"] != config["total"]:
            raise BenchError(f"ghz sent {of_kind[kind]['count']} calls of {config['total']}.")
    calls = {kind: timed(of_kind[kind], it["rps"]) for kind, it in shoppers.configs.items()}
    # From the end of the last warm-up to the first kind that has no more calls to send.
    begin_s = max(it[0].due_s for it in calls.values()) + WARM_UP_S
    end_s = min(it[-1].due_s for it in calls.values())
    if end_s <= begin_s:
        raise BenchError("The kinds of call did not overlap in time: run for more seconds.")
    measured = {
        kind: [it for it in each if begin_s <= it.due_s < end_s] for kind, each in calls.items()
    }
    every = [it for each in measured.values() for it in each]
    sent = sum(begin_s <= it.sent_s < end_s for each in calls.values() for it in each)
    latencies_ms = [it.latency_ms for it in every if it.ok]
    return Summary(
        rate=shoppers.rate,
        sent_per_s=sent / (end_s - begin_s),
        calls=len(every),
        ok={kind: sum(it.ok for it in each) for kind, each in calls.items()},
        unknown={kind: _unknown(report) for kind, report in of_kind.items()},
        errors=_errors(of_kind),
        p50_ms=percentile(latencies_ms, 50),
        p95_ms=percentile(latencies_ms, 95),
        p99_ms=percentile(latencies_ms, 99),
        p95_ms_of={
            kind: percentile([it.latency_ms for it in each if it.ok], 95)
            for kind, each in measured.items()
        },
        late_p99_ms=percentile([(it.sent_s - it.due_s) * 1000 for it in every], 99),
        client_cores=cpu_s / max(report["total"] / 1e9 for report in reports),
    )


@dataclass(frozen=True, slots=True)
class Timed:
    """A call: when it was due, sent and answered, in seconds of Unix time."""

    due_s: float
    sent_s: float
    answered_s: float
    ok: bool

    @property
    def latency_ms(self) -> float:
        """Latency from the time at which it was due."""
        return (self.answered_s - self.due_s) * 1000


def timed(report: Report, rps: int) -> list[Timed]:
    """The calls of a ghz, in the order of sending."""
    tick_s = 10**9 // rps / 1e9  # rounded as in ghz (load/pacer.go)
    sent: list[tuple[float, float, bool]] = []
    for it in report["details"]:
        answered_s = datetime.fromisoformat(it["timestamp"]).timestamp()
        sent.append((answered_s - it["latency"] / 1e9, answered_s, it["status"] == "OK"))
    sent.sort()
    begin_s = min(sent_s - number * tick_s for number, (sent_s, _, _) in enumerate(sent))
    return [Timed(begin_s + number * tick_s, *it) for number, it in enumerate(sent)]


def _unknown(report: Report) -> int:
    statuses = report["statusCodeDistribution"].items()
    return sum(count for status, count in statuses if status in UNKNOWN)


def _errors(of_kind: Mapping[str, Report]) -> dict[str, int]:
    errors: Counter[str] = Counter()
    for kind, report in of_kind.items():
        for error, count in report["errorDistribution"].items():
            errors[f"{kind}: {error}"] += count
    return dict(errors)
