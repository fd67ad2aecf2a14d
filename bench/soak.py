"""Many minutes of shoppers at a good part of what the service can do: does it stay as it is?

    python -m bench.soak                       15 minutes at 70 % of the capacity it finds first
    python -m bench.soak --minutes 60 --rate 500

Every five seconds the memory, descriptors and connections of each worker, of PostgreSQL and of
Redis are noted (what PostgreSQL's processes share counts once for each of them); a line through
what was noted after the warm-up says how they grow. It fails when a worker's memory grows by 1 MiB
an hour or more, beyond what chance explains, when descriptors do not stay, when more than one call
in a thousand fails, or when answers and database differ.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Annotated, Final, TypeAlias

import psutil
import typer

from bench.caller import channel_to
from bench.checkout import WARM_UP_S, Summary
from bench.conservation import Answers, check_book
from bench.cpu import family
from bench.parts import EFFECTS
from bench.prepare import make_book
from bench.stack import ROOT, BenchError, Server, Stack, stack
from coupon_service.embedded import EmbeddedError
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL

SAMPLE_S: Final = 5.0
TOLD_S: Final = 30.0
WARM_UP_SHARE: Final = 1 / 3
"""Of the whole time: pools, caches and the allocator find their size."""

CODES: Final = "SOAKTILL"
CODES_COUNT: Final = 20_000
CONNECTIONS: Final = 200

RATES: Final = (200, 300, 450, 650, 900, 1_200, 1_600, 2_100)
RATE_SECONDS: Final = 8.0
HELD_P99_MS: Final = 250.0
"""A rate is kept up with while this holds and nothing fails."""

GROWTH_MAX_MIB_H: Final = 1.0
DESCRIPTORS_MAX: Final = 2
"""By so many the descriptors of a worker may differ between early and late: its pool breathes."""

ERRORS_MAX: Final = 0.001
"""Of the calls. A busy machine is late for Redis now and then, and says so."""

MIB: Final = 1 << 20
Series: TypeAlias = "dict[str, list[int]]"


@dataclass(frozen=True, slots=True)
class Growth:
    """How something grew after the warm-up. `error_mib_h`: the standard error of the slope."""

    first_mib: float
    last_mib: float
    mib_h: float
    error_mib_h: float
    descriptors_first: float
    descriptors_last: float
    connections_first: float
    connections_last: float

    @property
    def leaks(self) -> bool:
        """Whether the memory grows too fast, with 95 % confidence."""
        return self.mib_h - 1.645 * self.error_mib_h >= GROWTH_MAX_MIB_H

    @property
    def loses_descriptors(self) -> bool:
        """Whether there are more descriptors late than early."""
        return self.descriptors_last - self.descriptors_first > DESCRIPTORS_MAX


class Samples:
    """What was noted of each process, or group of processes, and when."""

    def __init__(self, stack: Stack, service: Server) -> None:
        self._groups = {
            **{f"worker {it.pid}": [it] for it in service.workers},
            "supervisor": [service.process],
        }
        self._stack = stack
        self.times_s: list[float] = []
        self.bytes_: Series = {}
        self.descriptors: Series = {}
        self.connections: Series = {}

    def take(self) -> None:
        """Notes everything. Raises BenchError when a process has ended."""
        groups = self._groups | {
            "PostgreSQL": family(self._stack.postgres.pid),
            "Redis": family(self._stack.redis.pid),
        }
        self.times_s.append(time.monotonic())
        for name, processes in groups.items():
            try:
                taken = [_look_at(it) for it in processes]
            except psutil.NoSuchProcess:
                if name == "PostgreSQL":  # a session of it has ended meanwhile
                    taken = [_look_at(processes[0])]
                else:
                    raise BenchError(f"{name} has ended.") from None
            for series, values in zip(
                (self.bytes_, self.descriptors, self.connections),
                zip(*taken, strict=True),
                strict=True,
            ):
                series.setdefault(name, []).append(sum(values))

    def growths(self) -> dict[str, Growth]:
        """How each of them grew after the warm-up."""
        start = int(len(self.times_s) * WARM_UP_SHARE)
        hours = [(it - self.times_s[start]) / 3_600 for it in self.times_s[start:]]
        growths: dict[str, Growth] = {}
        for name, taken in self.bytes_.items():
            mib = [it / MIB for it in taken[start:]]
            slope, error = _slope(hours, mib)
            descriptors = _ends(self.descriptors[name][start:])
            connections = _ends(self.connections[name][start:])
            growths[name] = Growth(*_ends(mib), slope, error, *descriptors, *connections)
        return growths

    def now(self) -> str:
        """The last sample, in a line."""
        return "; ".join(
            f"{name} {taken[-1] / MIB:.1f} MiB, {self.descriptors[name][-1]} descriptors"
            for name, taken in self.bytes_.items()
        )


def _look_at(process: psutil.Process) -> tuple[int, int, int]:
    with process.oneshot():
        connections = len(process.net_connections("tcp"))
        return process.memory_info().rss, process.num_fds(), connections


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = max(len(values) // 3, 1)
    return median(values[:third]), median(values[-third:])


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the line of least squares and its standard error (Draper and Smith, Applied
    Regression Analysis, 1.4)."""
    slope, intercept = linear_regression(x, y)
    mean = sum(x) / len(x)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    spread = sum((a - mean) ** 2 for a in x)
    return slope, math.sqrt(residual / max(len(x) - 2, 1) / spread)


def shoppers(address: str, rate: float, seconds: float) -> subprocess.Popen[str]:
    """A process that sends shoppers for so long and then prints what they saw."""
    command = [sys.executable, "-m", "bench.checkout", address, "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--connections", str(CONNECTIONS)]
    command += ["--codes", CODES, "--codes-count", str(CODES_COUNT)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def summary_of(process: subprocess.Popen[str], answers: Answers) -> Summary:
    """What the shoppers saw, also added to the answers. Raises BenchError."""
    output, errors = process.communicate(timeout=120)
    if process.returncode:
        raise BenchError(f"The shoppers failed: {errors.strip()[-500:]}")
    summary = Summary(**json.loads(output))
    for kind, event in EFFECTS.items():
        answers.ok[event] += summary.ok.get(kind, 0)
        answers.unknown[event] += sum(
            count for what, count in summary.errors.items() if what.startswith(f"{kind}:")
        )
    return summary


def capacity_per_s(address: str, answers: Answers) -> float:
    """The highest of RATES that the service keeps up with, in calls a second."""
    best = 0.0
    for rate in RATES:
        found = summary_of(shoppers(address, rate, RATE_SECONDS), answers)
        print(
            f"{rate} calls a second: p99 {found.p99_ms:.0f} ms, {sum(found.errors.values())}"
            " errors",
            flush=True,
        )
        if found.errors or found.p99_ms > HELD_P99_MS:
            break
        best = rate
    if not best:
        raise BenchError(f"The service does not even keep up with {RATES[0]} calls a second.")
    return best


def soak(
    stack: Stack, service: Server, rate: float, seconds: float, answers: Answers
) -> tuple[Summary, Samples]:
    """Shoppers for so long, and what was noted meanwhile."""
    samples = Samples(stack, service)
    process = shoppers(service.address, rate, seconds)
    started = told = time.monotonic()
    try:
        while process.poll() is None:
            now = time.monotonic()
            if WARM_UP_S < now - started < WARM_UP_S + seconds:
                samples.take()
            if now - told >= TOLD_S:
                told = now
                print(f"{(now - started) / 60:5.1f} min: {samples.now()}", flush=True)
            if now - started > seconds + 120:
                raise BenchError("The shoppers do not come to an end.")
            time.sleep(SAMPLE_S)
        return summary_of(process, answers), samples
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def told(summary: Summary, growths: dict[str, Growth], conservation: str) -> str:
    """The report."""
    errors = ", ".join(f"{count} {what}" for what, count in summary.errors.items()) or "none"
    lines = [
        f"{summary.calls:,} calls at {summary.rate:,.0f} a second; errors: {errors}.",
        f"p50 {summary.p50_ms:.1f} ms, p95 {summary.p95_ms:.1f} ms, p99 {summary.p99_ms:.1f} ms.",
        "From the first third after the warm-up to the last; memory in MiB:",
        "",
        "| process | memory | growth an hour | descriptors | connections |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {it.first_mib:.1f} → {it.last_mib:.1f}"
        f" | {it.mib_h:+.2f} ± {1.96 * it.error_mib_h:.2f}"
        f" | {it.descriptors_first:.0f} → {it.descriptors_last:.0f}"
        f" | {it.connections_first:.0f} → {it.connections_last:.0f} |"
        for name, it in growths.items()
    ]
    return "\n".join([*lines, "", f"{conservation}."])


def main(
    minutes: Annotated[float, typer.Option(min=0.5, max=1_440)] = 15,
    rate: Annotated[
        float | None, typer.Option(min=1, help="Calls a second; without it, found first.")
    ] = None,
    share: Annotated[float, typer.Option(min=0.1, max=1, help="Of the capacity found.")] = 0.7,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the samples go.")] = ROOT
    / "bench"
    / "out"
    / "soak.json",
) -> None:
    """Load the service for a long time and see whether it stays as it is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with stack(workers) as servers, servers.service() as service:
            with channel_to(service.address) as channel:
                codes = [f"{CODES}{number}" for number in range(CODES_COUNT)]
                book_id = make_book(channel, "soak", codes, lock_policy=LOCK_POLICY_OPTIONAL)
            answers = Answers()
            rate = rate or share * capacity_per_s(service.address, answers)
            print(f"{minutes:.0f} minutes at {rate:,.0f} calls a second", flush=True)
            summary, samples = soak(servers, service, rate, minutes * 60, answers)
            conservation = check_book(servers.postgres.url, book_id, answers)
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    growths = samples.growths()
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = {"summary": asdict(summary), "growths": {k: asdict(it) for k, it in growths.items()}}
    series = {"times_s": samples.times_s, "bytes": samples.bytes_}
    out.write_text(json.dumps(kept | series | {"descriptors": samples.descriptors}))
    print(f"\n{told(summary, growths, conservation)}")
    failures = [f"{name} leaks memory" for name, it in workers_of(growths) if it.leaks]
    failures += [
        f"{name} leaks descriptors"
        for name, it in growths.items()
        # PostgreSQL opens its files when they are first needed.
        if it.loses_descriptors and name != "PostgreSQL"
    ]
    if sum(summary.errors.values()) > summary.calls * ERRORS_MAX:
        failures.append("calls failed")
    sys.exit("; ".join(failures) or None)


def workers_of(growths: dict[str, Growth]) -> list[tuple[str, Growth]]:
    """The workers among the processes."""
    return [(name, it) for name, it in growths.items() if name.startswith("worker")]


if __name__ == "__main__":
    typer.run(main)
