"""Ten million codes in a book: making, assigning, locking, redeeming, listing and exporting them.

    python -m bench.ten_million

GenerateCodes and COPY take turns, a tenth of the codes each, so that both meet the same machine.
Most of a book is used up by one UPDATE, since ten million calls would take hours; the calls that
are measured are calls.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Annotated, Any, Final

import grpc
import psutil
import psycopg
import typer

from bench.loads import caller
from bench.loads.ghz import percentile
from bench.loads.prepare import make_book
from bench.loads.scenarios import SCENARIOS, Bench, Scenario
from bench.measure.copying import Copies
from bench.measure.rounds import SERVICE
from bench.report.report import told, write_report
from bench.report.results import Found, Row, about_run
from bench.run import bench
from bench.servers.stack import ROOT, BenchError
from coupon_service.embedded import EmbeddedError
from coupon_service.model.codes import CodeFormat, generate
from coupon_service.settings import TOKEN_VARIABLE
from coupon_service.v1 import assignment_service_pb2 as assignments
from coupon_service.v1 import coupon_code_service_pb2 as codes
from coupon_service.v1 import redemption_service_pb2 as redemptions
from coupon_service.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub
from coupon_service.v1.money_pb2 import Money
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

TURNS: Final = 10
SMALL: Final = 10_000
CALLS: Final = 300
"""Calls of each kind at each point, one after the other."""


class Memory:
    """The most memory that a worker of the service had, in MiB, whenever it was looked at."""

    def __init__(self, workers: list[psutil.Process]) -> None:
        self._workers = workers
        self.most_mib = 0.0

    def look(self) -> None:
        """Takes note of it."""
        now_mib = max(it.memory_info().rss for it in self._workers) / 2**20
        self.most_mib = max(self.most_mib, now_mib)


@dataclass(slots=True)
class Generation:
    """Codes made, and the seconds that it took; curves of (seconds, codes)."""

    count: int
    generate_s: float = 0.0
    copy_s: float = 0.0
    worker_mib: float = 0.0
    curves: dict[str, list[tuple[float, int]]] = field(
        default_factory=dict[str, list[tuple[float, int]]]
    )


def generation(bench: Bench, copies: Copies, book_id: str, count: int) -> Generation:
    """Both make so many codes, in turns."""
    stub = CouponCodeServiceStub(bench.channel)
    memory = Memory(bench.servers[SERVICE].workers)
    result = Generation(count)
    mine: list[tuple[float, int]] = [(0.0, 0)]
    theirs: list[tuple[float, int]] = [(0.0, 0)]
    each = count // TURNS
    for turn in range(TURNS):
        request = codes.GenerateCodesRequest(
            book_id=book_id, count=each, request_id=f"bench-turn-{turn}"
        )
        started = perf_counter()
        for progress in stub.GenerateCodes(request):
            seconds = result.generate_s + perf_counter() - started
            mine.append((seconds, turn * each + progress.generated_count))
            memory.look()
        result.generate_s += perf_counter() - started
        result.copy_s += copies.copy(generate(CodeFormat(), each))
        theirs.append((result.copy_s, (turn + 1) * each))
    result.worker_mib = memory.most_mib
    result.curves = {"GenerateCodes": mine, "COPY, unsorted": theirs}
    return result


@dataclass(frozen=True, slots=True)
class Import:
    """Codes of a file, and the seconds that it took to upload or to COPY them."""

    count: int
    import_s: float
    copy_s: float


def importing(bench: Bench, copies: Copies, count: int) -> Import:
    """The command line uploads a file, COPY does the same, in turns."""
    book_id = make_book(bench.channel, "import", [])
    file = bench.stack.folder / "codes.txt"
    import_s = copy_s = 0.0
    turns = 2
    for turn in range(turns):
        made = generate(CodeFormat(), count // turns)
        file.write_text("\n".join(made), encoding="ascii")
        command = [sys.executable, "-m", "coupon_service", "import", book_id, str(file)]
        command += ["--address", bench.servers[SERVICE].address, "--request-id", f"bench-{turn}"]
        started = perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {TOKEN_VARIABLE: caller.token()},
            capture_output=True,
            text=True,
            check=False,
        )
        import_s += perf_counter() - started
        if done.returncode:
            raise BenchError(f"The import failed: {done.stderr.strip()[-500:]}")
        copy_s += copies.copy(made)
    return Import(count, import_s, copy_s)


# --- latency ------------------------------------------------------------------------------------

USE_UP: Final = """
UPDATE coupon_codes SET state = 2, assignments = 1
WHERE book_id = %(book_id)s AND state = 1 AND random() < %(part)s
"""
SAMPLE: Final = """
SELECT code FROM coupon_codes
WHERE book_id = %(book_id)s AND bucket = %(bucket)s AND redemptions = 0 AND code >= %(start)s
LIMIT %(count)s
"""


def use_up(bench: Bench, book_id: str, part: float) -> None:
    """Marks this part of the available codes as assigned, and does what autovacuum would do.

    So many calls would take hours, and what they changed would have been written to disk long ago.
    """
    with psycopg.connect(bench.stack.postgres.url, autocommit=True) as connection:
        connection.execute(USE_UP, {"book_id": book_id, "part": part})
        connection.execute("VACUUM ANALYZE coupon_codes")
        connection.execute("CHECKPOINT")


def points(bench: Bench, book_id: str, size: int) -> Iterator[dict[str, Any]]:
    """Latencies of all kinds of calls on a book, with more and more of it used up."""
    for used, part in (("0 %", 0.0), ("99.9 %", 0.999), ("all", 1.0)):
        if part == 0.999 and size < 2_000 * CALLS:
            continue  # too few would be left
        if part:
            use_up(bench, book_id, part)
        _latencies_ms(bench, book_id, used)  # All are warm again, whatever was done to the book.
        point: dict[str, Any] = {"codes": size, "used": used}
        for kind, latencies_ms in _latencies_ms(bench, book_id, used).items():
            point[f"{kind}_p50_ms"] = percentile(latencies_ms, 50)
            point[f"{kind}_p99_ms"] = percentile(latencies_ms, 99)
        print(point, flush=True)
        yield point


def _latencies_ms(bench: Bench, book_id: str, used: str) -> dict[str, list[float]]:
    """Those of the calls of each kind."""
    bench.forget_locks()
    found: dict[str, list[float]] = {}
    for kind, call in _calls(bench, book_id).items():
        refused = kind == "assign" and used == "all"
        found[kind] = [_latency_ms(call, refused=refused) for _ in range(CALLS)]
    return found


def _latency_ms(call: Callable[[], object], *, refused: bool) -> float:
    started = perf_counter()
    try:
        call()
    except grpc.RpcError:
        if not refused:
            raise
    return (perf_counter() - started) * 1000


def _calls(bench: Bench, book_id: str) -> dict[str, Callable[[], object]]:
    assigning = AssignmentServiceStub(bench.channel)
    making = CouponCodeServiceStub(bench.channel)
    redeeming = RedemptionServiceStub(bench.channel)
    unused = iter(_some_codes(bench, book_id, 4 * CALLS))
    price = Money(amount_minor=4_000, currency_code="EUR")

    def attempt() -> dict[str, Any]:
        name = uuid.uuid4().hex
        return {"user_id": name, "request_id": name}

    return {
        "assign": lambda: assigning.AssignRandomCode(
            assignments.AssignRandomCodeRequest(book_id=book_id, **attempt())
        ),
        "lock": lambda: redeeming.LockCode(
            redemptions.LockCodeRequest(code=next(unused), **attempt())
        ),
        "redeem": lambda: redeeming.RedeemCode(
            redemptions.RedeemCodeRequest(code=next(unused), order_amount=price, **attempt())
        ),
        "get": lambda: making.GetCode(codes.GetCodeRequest(code=next(unused))),
        "list": lambda: making.ListCodes(
            codes.ListCodesRequest(book_id=book_id, state=codes.COUPON_CODE_STATE_AVAILABLE)
        ),
    }


def _some_codes(bench: Bench, book_id: str, count: int) -> list[str]:
    """Codes of the book that were not redeemed, from all over it."""
    found: list[str] = []
    each = count // 64 + 1
    with psycopg.connect(bench.stack.postgres.url) as connection:
        for bucket in range(64):
            for start in (generate(CodeFormat(), 1)[0], ""):
                about = {"book_id": book_id, "bucket": bucket, "start": start, "count": each}
                rows = connection.execute(SAMPLE, about).fetchall()
                if len(rows) == each:
                    break
            found += [row[0] for row in rows]
    random.shuffle(found)
    return found


@dataclass(frozen=True, slots=True)
class Export:
    """Codes exported, and how many a second."""

    count: int
    per_s: float


def export(bench: Bench, book_id: str, count_max: int) -> Export:
    """Reads the book's codes from the beginning, up to so many."""
    started, count = perf_counter(), 0
    stream = CouponCodeServiceStub(bench.channel).ExportCodes(
        codes.ExportCodesRequest(book_id=book_id)
    )
    for page in stream:
        count += len(page.codes)
        if count >= count_max:
            break
    seconds = perf_counter() - started
    stream.cancel()
    return Export(count, count / seconds)


def main(
    count: Annotated[int, typer.Option(min=100_000, help="Codes of the large book.")] = 10_000_000,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of AssignRandomCode.")] = 5,
    calls: Annotated[int, typer.Option(min=1_000, help="Calls of a round.")] = 10_000,
) -> None:
    """Measure the service with ten million codes in a book."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = perf_counter()
    try:
        with bench(workers) as running:
            found = Found(about_run(running.stack, rounds, calls))
            copies = Copies.prepare(running.stack)
            small = running.book("small", SMALL, uses=1, lock_policy=LOCK_POLICY_OPTIONAL)
            large = running.book("large", [], uses=1, lock_policy=LOCK_POLICY_OPTIONAL)
            generated = generation(running, copies, large, count)
            found.parts["generation"] = asdict(generated)
            print(f"generate {generated.generate_s:.0f} s, COPY {generated.copy_s:.0f} s")
            imported = importing(running, copies, count // 10)
            found.parts["import"] = asdict(imported)
            print(f"import {imported.import_s:.0f} s, COPY {imported.copy_s:.0f} s", flush=True)
            copies.drop()
            row = _assign_rounds(running, large, count, calls, rounds)
            found.rows.append(row)
            print(told(row), flush=True)
            found.parts["export"] = asdict(export(running, large, 1_000_000))
            memory = Memory(running.servers[SERVICE].workers)
            found.parts["points"] = [
                *points(running, small, SMALL),
                *points(running, large, count),
            ]
            memory.look()
            found.parts["worker_mib"] = memory.most_mib
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    print(f"{perf_counter() - started:.0f} s")
    found.save("millions")
    write_report()


def _assign_rounds(running: Bench, book_id: str, count: int, calls: int, rounds: int) -> Row:
    """The scenario of bench.run, on the large book."""

    def setup(_: Bench) -> str:
        return book_id

    (scenario,) = (it for it in SCENARIOS if it.name == "assign-random")
    large: Scenario = replace(
        scenario, title=f"AssignRandomCode, {count:,} codes in the book", setup=setup
    )
    return Row.of(large, large.run(running, calls, rounds))


if __name__ == "__main__":
    typer.run(main)
