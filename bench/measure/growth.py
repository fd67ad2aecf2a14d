"""Growth of the processes of a stack: samples, linear trend, verdict.

A worker is judged by its memory in use (bench/servers/in_use.py). Each sample is the least of three
readings. Memory that PostgreSQL's processes share counts once for each of them. A line through the
samples gives the growth, with its margin of error.
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

READINGS: Final = 3
SETTLE_S: Final = 1.0
"""Pause before each reading, in which connections close and workers free memory."""

SAMPLES_MIN: Final = 5
GROWTH_MAX_MIB_H: Final = 1.0
CONFIDENCE: Final = 0.95
DESCRIPTORS_MAX: Final = 2
"""Tolerated growth of a worker's descriptors: the connections of a client or two may still be
closing."""

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of a process, or of a group of processes together.

    `in_use`: allocated bytes, which only workers report. `resident`: bytes in memory.
    """

    in_use: int | None
    resident: int
    descriptors: int
    connections: int


@dataclass(frozen=True, slots=True)
class Trend:
    """The medians of the first and the last third of the samples, and the growth, in MiB.

    `margin_h`: with 95 % confidence the growth per hour is less than `growth_h + margin_h`, and
    likewise more than `growth_h - margin_h`.
    """

    first: float
    last: float
    growth_h: float
    margin_h: float

    def __str__(self) -> str:
        return f"{self.first:.1f} → {self.last:.1f} | {self.growth_h:+.2f} ± {self.margin_h:.2f}"


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth of a process or group after the warm-up. Counts are medians of the first and the last
    third of the samples. Only workers have `in_use`.
    """

    in_use: Trend | None
    resident: Trend
    descriptors: tuple[float, float]
    connections: tuple[float, float]

    @property
    def failure(self) -> str:
        """What is wrong with the memory in use; empty when it does not grow."""
        if self.in_use is None or self.in_use.growth_h + self.in_use.margin_h < GROWTH_MAX_MIB_H:
            return ""
        if self.in_use.growth_h - self.in_use.margin_h >= GROWTH_MAX_MIB_H:
            return "leaks memory"
        return "may leak memory: too few samples to decide"

    @property
    def leaks_descriptors(self) -> bool:
        """Whether the number of descriptors grew."""
        first, last = self.descriptors
        return last - first > DESCRIPTORS_MAX


class Samples:
    """Samples of each process or group, with their times in seconds since the start."""

    def __init__(self, stack: Stack, service: Server) -> None:
        self._workers = {f"worker {it.pid}": it for it in service.workers}
        self._supervisor = service.process
        self._stack = stack
        self._started_s = time.monotonic()
        self.times_s: list[float] = []
        self.usages: dict[str, list[Usage]] = {}

    def take(self) -> None:
        """Add a sample. Raises BenchError when a process has ended or does not report."""
        self.times_s.append(time.monotonic() - self._started_s)
        readings = [self._read() for _ in range(READINGS)]
        for name in readings[0]:
            self.usages.setdefault(name, []).append(_least([it[name] for it in readings]))

    def _read(self) -> dict[str, Usage]:
        """The usage of each group, after the workers have reported."""
        for worker in self._workers.values():
            with suppress(psutil.NoSuchProcess):  # reading it will raise
                worker.send_signal(in_use.SIGNAL)
        time.sleep(SETTLE_S)
        groups = {name: [it] for name, it in self._workers.items()} | {
            "supervisor": [self._supervisor],
            "PostgreSQL": family(self._stack.postgres.pid),
            "Redis": family(self._stack.redis.pid),
        }
        usages: dict[str, Usage] = {}
        for name, processes in groups.items():
            used = self._reported(processes[0]) if name in self._workers else None
            try:
                counts = [_counts(it) for it in processes]
            except psutil.NoSuchProcess:
                if name == "PostgreSQL":  # one of its sessions has ended meanwhile
                    counts = [_counts(processes[0])]
                else:
                    raise BenchError(f"{name} has ended.") from None
            usages[name] = Usage(used, *(sum(it) for it in zip(*counts, strict=True)))
        return usages

    def _reported(self, worker: psutil.Process) -> int:
        """The memory in use that the worker has reported for this reading, in bytes."""
        report = in_use.report_path(self._stack.folder, worker.pid)
        try:
            used = int(report.read_text(encoding="ascii"))
            report.unlink()
        except (FileNotFoundError, ValueError):
            raise BenchError(
                f"Worker {worker.pid} does not report its memory: that needs glibc 2.33 and"
                " pymalloc."
            ) from None
        return used

    def growths(self, warm_up_s: float) -> dict[str, Growth]:
        """The growth of each process or group after the warm-up."""
        start = sum(it < warm_up_s for it in self.times_s)
        hours = [it / 3_600 for it in self.times_s[start:]]
        growths: dict[str, Growth] = {}
        for name, taken in self.usages.items():
            usages = taken[start:]
            used = [it.in_use for it in usages if it.in_use is not None]
            growths[name] = Growth(
                trend(hours, used) if used else None,
                trend(hours, [it.resident for it in usages]),
                _ends([it.descriptors for it in usages]),
                _ends([it.connections for it in usages]),
            )
        return growths

    def latest(self) -> str:
        """The last sample as one line; for workers with the memory in use."""
        return "; ".join(
            f"{name} {_mib(taken[-1])}, {taken[-1].descriptors} descriptors"
            for name, taken in self.usages.items()
        )


def _mib(usage: Usage) -> str:
    resident = f"{usage.resident / MIB:.1f} MiB"
    return resident if usage.in_use is None else f"{usage.in_use / MIB:.2f} of {resident}"


def _counts(process: psutil.Process) -> tuple[int, int, int]:
    """Resident bytes, descriptors and connections of a process."""
    with process.oneshot():
        connections = len(process.net_connections("tcp"))
        return process.memory_info().rss, process.num_fds(), connections


def _least(usages: Sequence[Usage]) -> Usage:
    """The least value of each field."""
    used = [it.in_use for it in usages if it.in_use is not None]
    return Usage(
        min(used, default=None),
        min(it.resident for it in usages),
        min(it.descriptors for it in usages),
        min(it.connections for it in usages),
    )


def trend(hours: Sequence[float], sizes: Sequence[float]) -> Trend:
    """The trend of sizes in bytes at these times. Raises BenchError when there are too few."""
    mib = [it / MIB for it in sizes]
    return Trend(*_ends(mib), *slope(hours, mib))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = max(len(values) // 3, 1)
    return median(values[:third]), median(values[-third:])


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the least-squares line, and its one-sided margin of error.

    Samples of memory are autocorrelated, so their effective number is reduced by the lag-1
    correlation of the residuals (Santer et al. 2000, Journal of Geophysical Research 105, equations
    3 to 6). Raises BenchError when there are too few for a line.
    """
    if len(x) < SAMPLES_MIN:
        raise BenchError(f"{len(x)} samples are too few: run for more minutes.")
    incline, intercept = linear_regression(x, y)
    residuals = [b - intercept - incline * a for a, b in zip(x, y, strict=True)]
    squares = sum(it**2 for it in residuals)
    if math.isclose(squares, 0, abs_tol=1e-12):
        return incline, 0.0
    lag_1 = max(correlation(residuals[:-1], residuals[1:]), 0.0)
    freedom = len(x) * (1 - lag_1) / (1 + lag_1) - 2
    if freedom < 2:
        return incline, math.inf
    mean = sum(x) / len(x)
    error = math.sqrt(squares / freedom / sum((it - mean) ** 2 for it in x))
    return incline, _student(freedom) * error


def _student(freedom: float) -> float:
    """The quantile of Student's t at CONFIDENCE (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(CONFIDENCE)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
