"""What one tenant's bulk work does to another's calls, in alternating phases.

Callers redeem at a steady rate. Phases with nothing else alternate with phases in which somebody
generates, imports or exports codes as fast as the service lets them: the ratio of the latencies is
the price of the bulk work, and the machine's own noise is in both.

    python -m bench.measure.beside_bulk --kind generate --streams 4
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Final
from uuid import uuid4

import grpc

from bench.loads.caller import channel_to
from bench.servers.stack import Stack, stack
from coupon_service.v1 import coupon_book_service_pb2 as books
from coupon_service.v1 import coupon_code_service_pb2 as codes
from coupon_service.v1 import redemption_service_pb2 as redemptions
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

CODES: Final = 2_000
CALLERS: Final = 8
CALL_TIMEOUT_S: Final = 5.0
IMPORT_ROWS: Final = 5_000
GENERATED: Final = 100_000_000
"""More than a phase is long."""

PERCENTILES: Final = (50, 95, 99)


@dataclass(slots=True)
class Phase:
    """What callers saw: latencies in milliseconds, and how calls failed."""

    latencies_ms: list[float] = field(default_factory=list[float])
    failures: Counter[str] = field(default_factory=Counter[str])
    bulk_codes: int = 0

    def percentile(self, percent: int) -> float:
        """A latency that so many percent of the calls did not exceed."""
        return quantiles(self.latencies_ms, n=100)[percent - 1] if self.latencies_ms else 0.0


class Callers:
    """Redemptions at a steady rate, whoever is late."""

    def __init__(self, address: str, names: list[str], per_s: float) -> None:
        self._address = address
        self._names = itertools.cycle(names)
        self._per_s = per_s
        self.phase: Phase | None = None
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(64)
        self._clock = threading.Thread(target=self._run, daemon=True)
        self._stubs = itertools.cycle(
            [RedemptionServiceStub(channel_to(address)) for _ in range(CALLERS)]
        )

    def __enter__(self) -> Callers:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._clock.join()
        self._pool.shutdown()

    def _run(self) -> None:
        next_s = time.perf_counter()
        while not self._stopped.is_set():
            next_s += 1 / self._per_s
            time.sleep(max(0.0, next_s - time.perf_counter()))
            if (phase := self.phase) is not None:
                self._pool.submit(self._call, phase, next(self._stubs), next(self._names), next_s)

    def _call(self, phase: Phase, stub: Any, code: str, due_s: float) -> None:
        request = redemptions.RedeemCodeRequest(
            code=code, user_id=uuid4().hex, request_id=uuid4().hex
        )
        try:
            stub.RedeemCode(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            phase.failures[error.code().name] += 1  # type: ignore[attr-defined]
        phase.latencies_ms.append((time.perf_counter() - due_s) * 1_000)


# --- bulk work ----------------------------------------------------------------------------------


def new_book(address: str, **fields: Any) -> str:
    """A new book of a business of its own."""
    book = books.CouponBook(
        business_id=uuid4().hex,
        name="bulk",
        discount=books.Discount(benefit=books.Benefit(description="a gift")),
        assignment_policy=books.ASSIGNMENT_POLICY_BEARER,
        lock_policy=books.LOCK_POLICY_OFF,
        **fields,
    )
    stub = CouponBookServiceStub(channel_to(address))
    request = books.CreateCouponBookRequest(coupon_book=book, request_id=uuid4().hex)
    book_id = stub.CreateCouponBook(request).coupon_book.book_id
    stub.ActivateCouponBook(
        books.ActivateCouponBookRequest(book_id=book_id, request_id=uuid4().hex)
    )
    return book_id


def generate(address: str, _: str) -> Any:
    """A stream of progress."""
    request = codes.GenerateCodesRequest(
        book_id=new_book(address), count=GENERATED, request_id=uuid4().hex
    )
    return CouponCodeServiceStub(channel_to(address)).GenerateCodes(request)


def import_(address: str, _: str) -> Any:
    """A stream of the results of chunks."""
    book_id = new_book(address)

    def messages() -> Iterator[codes.ImportCodesRequest]:
        header = codes.ImportHeader(book_id=book_id, request_id=uuid4().hex)
        yield codes.ImportCodesRequest(header=header)
        prefix = uuid4().hex[:12].upper()
        for number in itertools.count(1):  # little work, since the callers are in this process too
            rows = [f"{prefix}{number:06}{row:04}" for row in range(IMPORT_ROWS)]
            yield codes.ImportCodesRequest(chunk=codes.ImportChunk(chunk_number=number, codes=rows))

    return CouponCodeServiceStub(channel_to(address)).ImportCodes(messages())


def export(address: str, full_book_id: str) -> Any:
    """A stream of pages."""
    request = codes.ExportCodesRequest(book_id=full_book_id)
    return CouponCodeServiceStub(channel_to(address)).ExportCodes(request)


KINDS: Final[dict[str, Callable[[str, str], Any]]] = {
    "generate": generate,
    "import": import_,
    "export": export,
}


def run_bulk(
    start: Callable[[str, str], Any], address: str, full_book_id: str, until_s: float
) -> int:
    """Codes that one stream made or carried until then."""
    done = 0
    while time.perf_counter() < until_s:
        stream = start(address, full_book_id)
        before = 0
        try:
            for answer in stream:
                if isinstance(answer, codes.GenerateCodesResponse):
                    done += answer.generated_count - before
                    before = answer.generated_count
                elif isinstance(answer, codes.ImportCodesResponse):
                    done += answer.created_count
                else:
                    done += len(answer.codes)
                if time.perf_counter() >= until_s:
                    stream.cancel()
                    break
        except grpc.RpcError as error:
            print(f"bulk: {error.code().name} {error.details()}")  # type: ignore[attr-defined]
            time.sleep(0.2)
    return done


def prepare(address: str) -> tuple[list[str], str]:
    """Codes without a limit, and a book to export."""
    limits = books.BookLimits(max_redemptions_per_code=0)
    book_id, full = new_book(address, limits=limits), new_book(address)
    stub = CouponCodeServiceStub(channel_to(address))
    for of, count in ((book_id, CODES), (full, 200_000)):
        list(
            stub.GenerateCodes(
                codes.GenerateCodesRequest(book_id=of, count=count, request_id=uuid4().hex)
            )
        )
    messages = stub.ExportCodes(codes.ExportCodesRequest(book_id=book_id))
    return [code.code for message in messages for code in message.codes], full


def measure(running: Stack, arguments: argparse.Namespace) -> None:
    """Prints a line for each phase, and their sums."""
    quiet, loud = Phase(), Phase()
    with running.service() as server:
        names, full = prepare(server.address)
        with Callers(server.address, names, arguments.per_s) as callers:
            callers.phase = Phase()
            time.sleep(3)
            for number in range(arguments.rounds):
                phases: list[Phase] = []
                for whole, streams in ((quiet, 0), (loud, arguments.streams)):
                    phase = Phase()
                    until_s = time.perf_counter() + arguments.seconds
                    with ThreadPoolExecutor(max(streams, 1)) as pool:
                        work = [
                            pool.submit(
                                run_bulk, KINDS[arguments.kind], server.address, full, until_s
                            )
                            for _ in range(streams)
                        ]
                        time.sleep(0.5 if streams else 0)
                        callers.phase = phase
                        time.sleep(max(0.0, until_s - time.perf_counter()))
                        callers.phase = None
                        phase.bulk_codes = sum(it.result() for it in work)
                    time.sleep(1)
                    whole.latencies_ms += phase.latencies_ms
                    whole.failures += phase.failures
                    whole.bulk_codes += phase.bulk_codes
                    phases.append(phase)
                print(f"{number}: {describe(phases[0])} | {describe(phases[1])}", flush=True)
    seconds = arguments.rounds * arguments.seconds
    print(f"quiet: {describe(quiet)}")
    print(f"beside {arguments.streams} x {arguments.kind}: {describe(loud)}")
    print(f"p95 {loud.percentile(95) / quiet.percentile(95):.2f} times as long,")
    print(f"bulk {loud.bulk_codes / seconds:,.0f} codes/s")


def describe(phase: Phase) -> str:
    """Percentiles and failures."""
    shown = " ".join(f"p{it} {phase.percentile(it):.1f}" for it in PERCENTILES)
    return f"{shown} ms of {len(phase.latencies_ms)} {dict(phase.failures) or ''}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="generate")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--per-s", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    with ExitStack() as servers:
        given = parser.parse_args()
        measure(servers.enter_context(stack(given.workers)), given)
