"""How the processes of a stack grow: looked at again and again, and judged.

Of a worker counts what is in use (bench/servers/in_use.py). Of each look, three are taken and the
least of them counts; what PostgreSQL's processes share counts once for each of them. A line through
what was seen says how each grows, and how far off that may be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import NormalDist, correlation, linear_regression, median
from typing import Final

import psutil

from bench.measure.cpu import family
from bench.servers import in_use
from bench.servers.stack import BenchError, Server, Stack

LOOKS: Final = 3
SETTLE_S: Final = 1.0
"""Before each look: connections close meanwhile, and workers tidy up."""

SAMPLES_MIN: Final = 5
GROWTH_MAX_MIB_H: Final = 1.0
CONFIDENCE: Final = 0.95
DESCRIPTORS_MAX: Final = 2
"""By so many the descriptors of a worker may differ between early and late: a client or two may be
about to go."""

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
