"""Benchmark with ten million codes in a book: all calls that touch codes, from import to export.

    python -m bench.ten_million

GenerateCodes and COPY alternate, a tenth of the codes each, so that both meet the same load of the
machine. An UPDATE uses up most of a book, since ten million calls would take hours; only real calls
are measured.
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
from bench.report.report import row_text, write_report
from bench.report.results import Results, Row, about_run
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
"""Sequential calls of each kind at each point."""


class PeakMemory:
    """The greatest sampled resident memory of a worker of the service, in MiB."""

    def __init__(self, workers: list[psutil.Process]) -> None:
        self._workers = workers
        self.peak_mib = 0.0

    def sample(self) -> None:
        """Update the peak."""
        now_mib = max(it.memory_info().rss for it in self._workers) / 2**20
        self.peak_mib = max(self.peak_mib, now_mib)


@dataclass(slots=True)
class Generation:
    """Generated codes, and the seconds that it took; curves of (seconds, codes)."""

    count: int
    generate_s: float = 0.0
    copy_s: float = 0.0
    worker_mib: float = 0.0
    curves: dict[str, list[tuple[float, int]]] = field(
        default_factory=dict[str, list[tuple[float, int]]]
    )


def generation(bench: Bench, copies: Copies, book_id: str, count: int) -> Generation:
    """Create `count` codes with GenerateCodes and with COPY, in turn."""
    stub = CouponCodeServiceStub(bench.channel)
    memory = PeakMemory(bench.servers[SERVICE].workers)
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
            memory.sample()
        result.generate_s += perf_counter() - started
        result.copy_s += copies.copy(generate(CodeFormat(), each))
        theirs.append((result.copy_s, (turn + 1) * each))
    result.worker_mib = memory.peak_mib
    result.curves = {"GenerateCodes": mine, "COPY, unsorted": theirs}
    return result


@dataclass(frozen=True, slots=True)
class Import:
    """Codes of a file, and the seconds to import and to COPY them."""

    count: int
    import_s: float
    copy_s: float


def importing(bench: Bench, copies: Copies, count: int) -> Import:
    """Import files with the command line, and COPY the same codes, in turn."""
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
    """Mark this share of the available codes as assigned, then vacuum and checkpoint.

    After as many calls, which would take hours, autovacuum and checkpoints would have run as well.
    """
    with psycopg.connect(bench.stack.postgres.url, autocommit=True) as connection:
        connection.execute(USE_UP, {"book_id": book_id, "part": part})
        connection.execute("VACUUM ANALYZE coupon_codes")
        connection.execute("CHECKPOINT")


def points(bench: Bench, book_id: str, size: int) -> Iterator[dict[str, Any]]:
    """Latencies of all kinds of calls on a book, as its codes are used up."""
    for used, part in (("0 %", 0.0), ("99.9 %", 0.999), ("all", 1.0)):
        if part == 0.999 and size < 2_000 * CALLS:
            continue  # too few would be left
        if part:
            use_up(bench, book_id, part)
        _latencies_ms(bench, book_id, used)  # warm-up after the change of the book
        point: dict[str, Any] = {"codes": size, "used": used}
        for kind, latencies_ms in _latencies_ms(bench, book_id, used).items():
            point[f"{kind}_p50_ms"] = percentile(latencies_ms, 50)
            point[f"{kind}_p99_ms"] = percentile(latencies_ms, 99)
        print(point, flush=True)
        yield point


def _latencies_ms(bench: Bench, book_id: str, used: str) -> dict[str, list[float]]:
    """The latencies of each kind of call."""
    bench.flush_locks()
    latencies_ms: dict[str, list[float]] = {}
    for kind, call in _calls(bench, book_id).items():
        refused = kind == "assign" and used == "all"
        latencies_ms[kind] = [_latency_ms(call, refused=refused) for _ in range(CALLS)]
    return latencies_ms


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
    """Codes of the book that were not redeemed, from all buckets."""
    sampled: list[str] = []
    each = count // 64 + 1
    with psycopg.connect(bench.stack.postgres.url) as connection:
        for bucket in range(64):
            for start in (generate(CodeFormat(), 1)[0], ""):
                about = {"book_id": book_id, "bucket": bucket, "start": start, "count": each}
                rows = connection.execute(SAMPLE, about).fetchall()
                if len(rows) == each:
                    break
            sampled += [row[0] for row in rows]
    random.shuffle(sampled)
    return sampled


@dataclass(frozen=True, slots=True)
class Export:
    """Exported codes, in all and per second."""

    count: int
    per_s: float


def export(bench: Bench, book_id: str, count_max: int) -> Export:
    """Export codes of the book from the beginning, up to `count_max`."""
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
            results = Results(about_run(running.stack, rounds, calls))
            copies = Copies.prepare(running.stack)
            small = running.book("small", SMALL, uses=1, lock_policy=LOCK_POLICY_OPTIONAL)
            large = running.book("large", [], uses=1, lock_policy=LOCK_POLICY_OPTIONAL)
            generated = generation(running, copies, large, count)
            results.parts["generation"] = asdict(generated)
            print(f"generate {generated.generate_s:.0f} s, COPY {generated.copy_s:.0f} s")
            imported = importing(running, copies, count // 10)
            results.parts["import"] = asdict(imported)
            print(f"import {imported.import_s:.0f} s, COPY {imported.copy_s:.0f} s", flush=True)
            copies.drop()
            row = _assign_rounds(running, large, count, calls, rounds)
            results.rows.append(row)
            print(row_text(row), flush=True)
            results.parts["export"] = asdict(export(running, large, 1_000_000))
            memory = PeakMemory(running.servers[SERVICE].workers)
            results.parts["points"] = [
                *points(running, small, SMALL),
                *points(running, large, count),
            ]
            memory.sample()
            results.parts["worker_mib"] = memory.peak_mib
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    print(f"{perf_counter() - started:.0f} s")
    results.save("millions")
    write_report()


def _assign_rounds(running: Bench, book_id: str, count: int, calls: int, rounds: int) -> Row:
    """The scenario `assign-random` of bench.run, on the large book."""

    def setup(_: Bench) -> str:
        return book_id

    (scenario,) = (it for it in SCENARIOS if it.name == "assign-random")
    large: Scenario = replace(
        scenario, title=f"AssignRandomCode, {count:,} codes in the book", setup=setup
    )
    return Row.of(large, large.run(running, calls, rounds))


if __name__ == "__main__":
    typer.run(main)
