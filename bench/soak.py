"""A long time of shoppers at a good part of what the service can do: does it stay as it is?

    python -m bench.soak                       30 minutes at 70 % of the capacity it finds first
    python -m bench.soak --minutes 100 --rate 500

The shoppers of bench/till.py come in rounds. After each, when the last call is answered and the
clients are gone, the workers tell what memory is in use (bench/in_use.py), and the memory that the
system gave, descriptors and connections of each worker, of PostgreSQL and of Redis are noted (what
PostgreSQL's processes share counts once for each of them); of three looks, the least. A line
through what was noted after the warm-up says how each grows.

Tables and buffers keep the size that the most calls ever open needed. So it begins with a peak of
four times the load, of which thousands of calls stay open, more than a slow moment of the machine
will leave open later. Caches fill in the warm-up. The pool of a worker has all its connections from
the start: each takes some.

It fails unless what each worker uses grows by less than 1 MiB an hour, with 95 % confidence; when
descriptors do not stay, when more than one call in a thousand fails, or when answers and database
differ. What the system gave to a worker is reported and not judged: it has gaps too, which a single
slow moment makes several MiB larger, while what leaks is in use.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, correlation, linear_regression, median
from typing import Annotated, Final

import psutil
import typer

from bench import in_use
from bench.caller import channel_to
from bench.conservation import Answers, check_book
from bench.cpu import family
from bench.prepare import make_book
from bench.stack import ROOT, BenchError, Server, Stack, stack
from bench.till import RATE_MIN, Summary, Till
from coupon_service.embedded import EmbeddedError
from coupon_service.settings import Settings
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL

CODES_COUNT: Final = 110_000
ROUND_S: Final = 20.0
POOL_SIZE: Final = str(Settings.model_fields["pool_max_size"].default)
"""As many connections as a worker opens at most."""

PEAK: Final = 4
"""Times the load."""

PEAK_S: Final = 10.0

LOOKS: Final = 3
SETTLE_S: Final = 1.0
"""Before each look at what a round has left: connections close meanwhile, and workers tidy up."""

RATES: Final = (200, 300, 450, 650, 900, 1_200, 1_600, 2_100)
RATE_TRIES: Final = 2
HELD_P99_MS: Final = 250.0
"""A rate is kept up with when this holds and nothing fails in one of the tries."""

SAMPLES_MIN: Final = 5
GROWTH_MAX_MIB_H: Final = 1.0
CONFIDENCE: Final = 0.95
DESCRIPTORS_MAX: Final = 2
"""By so many the descriptors of a worker may differ between early and late: a client or two may be
about to go."""

ERRORS_MAX: Final = 0.001
"""Of the calls. A busy machine is late for Redis now and then, and says so."""

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """What a process has, or those of a group together.

    `in_use`: bytes that are allocated, which only workers tell; `resident`: bytes in memory.
    """

    in_use: int | None
    resident: int
    descriptors: int
    connections: int


@dataclass(frozen=True, slots=True)
class Trend:
    """From the first third after the warm-up to the last, in MiB.

    `margin_h`: with 95 % confidence it grows by less than `growth_h` and this an hour, and so for
    more.
    """

    first: float
    last: float
    growth_h: float
    margin_h: float

    def __str__(self) -> str:
        return f"{self.first:.1f} → {self.last:.1f} | {self.growth_h:+.2f} ± {self.margin_h:.2f}"


@dataclass(frozen=True, slots=True)
class Growth:
    """How a process or a group grew after the warm-up; counts are from the first third to the last.

    `in_use` is only known of workers.
    """

    in_use: Trend | None
    resident: Trend
    descriptors: tuple[float, float]
    connections: tuple[float, float]

    @property
    def failure(self) -> str:
        """What is wrong with the memory in use, if anything is."""
        if self.in_use is None or self.in_use.growth_h + self.in_use.margin_h < GROWTH_MAX_MIB_H:
            return ""
        if self.in_use.growth_h - self.in_use.margin_h >= GROWTH_MAX_MIB_H:
            return "leaks memory"
        return "may leak memory: it took too few samples to tell"

    @property
    def leaks_descriptors(self) -> bool:
        """Whether there are more descriptors late than early."""
        first, last = self.descriptors
        return last - first > DESCRIPTORS_MAX


class Samples:
    """What was noted of each process, or group of processes, and when, in seconds from now on."""

    def __init__(self, stack: Stack, service: Server) -> None:
        self._workers = {f"worker {it.pid}": it for it in service.workers}
        self._supervisor = service.process
        self._stack = stack
        self._started_s = time.monotonic()
        self.times_s: list[float] = []
        self.looks: dict[str, list[Look]] = {}

    def take(self) -> None:
        """Notes everything. Raises BenchError when a process has ended or does not tell."""
        self.times_s.append(time.monotonic() - self._started_s)
        looks = [self._look() for _ in range(LOOKS)]
        for name in looks[0]:
            self.looks.setdefault(name, []).append(_least([it[name] for it in looks]))

    def _look(self) -> dict[str, Look]:
        """At each group, once the workers have told."""
        for worker in self._workers.values():
            with suppress(psutil.NoSuchProcess):  # the look at it will say so
                worker.send_signal(in_use.SIGNAL)
        time.sleep(SETTLE_S)
        groups = {name: [it] for name, it in self._workers.items()} | {
            "supervisor": [self._supervisor],
            "PostgreSQL": family(self._stack.postgres.pid),
            "Redis": family(self._stack.redis.pid),
        }
        looks: dict[str, Look] = {}
        for name, processes in groups.items():
            used = self._told(processes[0]) if name in self._workers else None
            try:
                taken = [_look_at(it) for it in processes]
            except psutil.NoSuchProcess:
                if name == "PostgreSQL":  # a session of it has ended meanwhile
                    taken = [_look_at(processes[0])]
                else:
                    raise BenchError(f"{name} has ended.") from None
            looks[name] = Look(used, *(sum(it) for it in zip(*taken, strict=True)))
        return looks

    def _told(self, worker: psutil.Process) -> int:
        """What the worker uses, in bytes; it tells once for each look."""
        told = in_use.path(self._stack.folder, worker.pid)
        try:
            used = int(told.read_text(encoding="ascii"))
            told.unlink()
        except (FileNotFoundError, ValueError):
            raise BenchError(
                f"Worker {worker.pid} does not tell what it uses; it takes glibc 2.33 and pymalloc."
            ) from None
        return used

    def growths(self, warm_up_s: float) -> dict[str, Growth]:
        """How each of them grew after the warm-up."""
        start = sum(it < warm_up_s for it in self.times_s)
        hours = [it / 3_600 for it in self.times_s[start:]]
        growths: dict[str, Growth] = {}
        for name, taken in self.looks.items():
            looks = taken[start:]
            used = [it.in_use for it in looks if it.in_use is not None]
            growths[name] = Growth(
                trend(hours, used) if used else None,
                trend(hours, [it.resident for it in looks]),
                _ends([it.descriptors for it in looks]),
                _ends([it.connections for it in looks]),
            )
        return growths

    def now(self) -> str:
        """The last sample, in a line; of workers, what is in use too."""
        return "; ".join(
            f"{name} {_mib(taken[-1])}, {taken[-1].descriptors} descriptors"
            for name, taken in self.looks.items()
        )


def _mib(look: Look) -> str:
    resident = f"{look.resident / MIB:.1f} MiB"
    return resident if look.in_use is None else f"{look.in_use / MIB:.2f} of {resident}"


def _look_at(process: psutil.Process) -> tuple[int, int, int]:
    """The numbers of a Look, but for what is in use."""
    with process.oneshot():
        connections = len(process.net_connections("tcp"))
        return process.memory_info().rss, process.num_fds(), connections


def _least(looks: Sequence[Look]) -> Look:
    """The least of each."""
    used = [it.in_use for it in looks if it.in_use is not None]
    return Look(
        min(used, default=None),
        min(it.resident for it in looks),
        min(it.descriptors for it in looks),
        min(it.connections for it in looks),
    )


def trend(hours: Sequence[float], sizes: Sequence[float]) -> Trend:
    """What bytes, noted at these times, come to. Raises BenchError when they are too few."""
    mib = [it / MIB for it in sizes]
    return Trend(*_ends(mib), *slope(hours, mib))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = max(len(values) // 3, 1)
    return median(values[:third]), median(values[-third:])


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the line of least squares, and how far off it may be to one side.

    Memory does not come and go by chance: each sample is much like the one before. So fewer count,
    by the correlation of a residual with the next (Santer et al. 2000, Journal of Geophysical
    Research 105, equations 3 to 6). Raises BenchError when there are too few for a line.
    """
    if len(x) < SAMPLES_MIN:
        raise BenchError(f"{len(x)} samples are too few: it takes more minutes.")
    incline, intercept = linear_regression(x, y)
    residuals = [b - intercept - incline * a for a, b in zip(x, y, strict=True)]
    squares = sum(it**2 for it in residuals)
    if math.isclose(squares, 0, abs_tol=1e-12):
        return incline, 0.0
    alike = max(correlation(residuals[:-1], residuals[1:]), 0.0)
    freedom = len(x) * (1 - alike) / (1 + alike) - 2
    if freedom < 2:
        return incline, math.inf
    mean = sum(x) / len(x)
    error = math.sqrt(squares / freedom / sum((it - mean) ** 2 for it in x))
    return incline, _student(freedom) * error


def _student(freedom: float) -> float:
    """The quantile of Student's t for the confidence (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(CONFIDENCE)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def capacity_per_s(till: Till) -> int:
    """The highest of RATES that the service keeps up with, in calls a second."""
    best = 0
    for rate in RATES:
        # The first calls of a service, and a busy moment of the machine, say little.
        if not any(_keeps_up(till, rate) for _ in range(RATE_TRIES)):
            break
        best = rate
    if not best:
        raise BenchError(f"The service does not even keep up with {RATES[0]} calls a second.")
    return best


def _keeps_up(till: Till, rate: int) -> bool:
    found = till.shop(rate, ROUND_S)
    print(_line(found), flush=True)
    return not found.errors and found.p99_ms <= HELD_P99_MS


def soak(till: Till, samples: Samples, rate: int, seconds: float) -> list[Summary]:
    """Rounds of shoppers for so long, each of which is followed by a sample."""
    summaries: list[Summary] = []
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        summaries.append(till.shop(rate, ROUND_S))
        samples.take()
        print(f"{left_s / 60:5.1f} min to go: {_line(summaries[-1])}; {samples.now()}", flush=True)
    return summaries


def _line(it: Summary) -> str:
    """A round, in a line."""
    return (
        f"{it.rate} calls a second: p50 {it.p50_ms:.0f} ms, p99 {it.p99_ms:.0f} ms,"
        f" {sum(it.errors.values())} errors"
    )


def told(summaries: Sequence[Summary], growths: dict[str, Growth], conservation: str) -> str:
    """The report."""
    errors = ", ".join(f"{count} {what}" for what, count in _errors(summaries).items()) or "none"
    p50_ms = median(it.p50_ms for it in summaries)
    p95_ms = median(it.p95_ms for it in summaries)
    p99_ms = median(it.p99_ms for it in summaries)
    lines = [
        f"{len(summaries)} rounds, {_calls(summaries):,} calls; errors: {errors}.",
        f"Medians of the rounds: p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms, p99 {p99_ms:.1f} ms.",
        "From the first third after the warm-up to the last; memory in MiB:",
        "",
        "| process | in use | growth/h | resident | growth/h | descriptors | connections |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {it.in_use or '– | –'} | {it.resident}"
        f" | {_counts(it.descriptors)} | {_counts(it.connections)} |"
        for name, it in growths.items()
    ]
    return "\n".join([*lines, "", f"{conservation}."])


def _counts(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.0f} → {ends[1]:.0f}"


def _calls(summaries: Sequence[Summary]) -> int:
    """All calls, also those of the warm-ups of the rounds."""
    answered = sum(sum(it.ok.values()) for it in summaries)
    return answered + sum(_errors(summaries).values())


def _errors(summaries: Sequence[Summary]) -> Counter[str]:
    errors: Counter[str] = Counter()
    for it in summaries:
        errors.update(it.errors)
    return errors


def main(
    minutes: Annotated[float, typer.Option(min=3, max=1_440, help="After the warm-up.")] = 30,
    warm_up: Annotated[float, typer.Option(min=0, max=60, help="Minutes of it.")] = 15,
    rate: Annotated[
        int | None, typer.Option(min=RATE_MIN, help="Calls a second; without it, found first.")
    ] = None,
    share: Annotated[float, typer.Option(min=0.5, max=1, help="Of the capacity found.")] = 0.7,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the samples go.")] = ROOT
    / "bench"
    / "out"
    / "soak.json",
) -> None:
    """Load the service for a long time and see whether it stays as it is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warm_up_s = warm_up * 60
    try:
        with (
            stack(workers) as servers,
            servers.service(in_use.__name__, pool_min_size=POOL_SIZE) as service,
        ):
            with channel_to(service.address) as channel:
                codes = [f"SOAKTILL{number}" for number in range(CODES_COUNT)]
                book_id = make_book(channel, "soak", codes, lock_policy=LOCK_POLICY_OPTIONAL)
                till = Till(codes, channel, service.address, servers.folder, Answers())
                rate = rate or int(share * capacity_per_s(till))
                print(_line(till.shop(PEAK * rate, PEAK_S)), flush=True)
                print(f"{warm_up:g} + {minutes:g} minutes at {rate:,} calls a second", flush=True)
                samples = Samples(servers, service)
                summaries = soak(till, samples, rate, warm_up_s + minutes * 60)
            conservation = check_book(servers.postgres.url, book_id, till.answers)
        growths = samples.growths(warm_up_s)
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "rounds": [asdict(it) for it in summaries],
        "growths": {name: asdict(it) for name, it in growths.items()},
        "times_s": samples.times_s,
        "looks": {name: [asdict(it) for it in looks] for name, looks in samples.looks.items()},
    }
    out.write_text(json.dumps(kept), encoding="utf-8")
    print(f"\n{told(summaries, growths, conservation)}")
    sys.exit("; ".join(failures(summaries, growths)) or None)


def failures(summaries: Sequence[Summary], growths: dict[str, Growth]) -> list[str]:
    """What was not as promised."""
    found = [f"{name} {it.failure}" for name, it in growths.items() if it.failure]
    found += [
        f"{name} leaks descriptors"
        for name, it in growths.items()
        # PostgreSQL opens its files when they are first needed.
        if it.leaks_descriptors and name != "PostgreSQL"
    ]
    if sum(_errors(summaries).values()) > _calls(summaries) * ERRORS_MAX:
        found.append("calls failed")
    return found


if __name__ == "__main__":
    typer.run(main)
