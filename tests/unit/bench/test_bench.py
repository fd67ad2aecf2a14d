"""Evaluation of the reports of ghz and of memory samples."""

from __future__ import annotations

import platform
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bench.loads.checkout import RATE_MIN, split, timed
from bench.measure.growth import MIB, Growth, slope, trend
from bench.servers.stack import ROOT, BenchError

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def call(due_ms: float, late_ms: float, took_ms: float, status: str = "OK") -> dict[str, Any]:
    """A call as ghz reports it: the time of the answer, and the latency since it was sent."""
    answered = BEGAN + timedelta(milliseconds=due_ms + late_ms + took_ms)
    return {"timestamp": answered.isoformat(), "latency": took_ms * 1e6, "status": status}


@pytest.mark.parametrize("total", [RATE_MIN, 250, 1_000, 1_500])
def test_each_kind_of_call_gets_a_share_of_the_rate(total: int) -> None:
    parts = split(total)
    assert sum(parts) == total
    assert min(parts) >= 1


def test_latency_counts_from_the_time_a_call_was_due() -> None:
    # Ten per second; ghz stalls for 250 ms and catches up. It reports in the order of the answers.
    details = [
        call(0, 0, 5),
        call(200, 151, 5),
        call(100, 250, 10, "Unavailable"),
        call(300, 60, 20),
    ]
    calls = timed({"details": details}, 10)
    assert [it.latency_ms for it in calls] == pytest.approx([5, 260, 156, 80], abs=0.01)
    assert [it.ok for it in calls] == [True, False, True, True]


def growth(mib: list[float], minutes: float) -> Growth:
    """The growth of samples that were taken at equal intervals over so many minutes."""
    hours = [minutes / 60 * number / len(mib) for number in range(len(mib))]
    in_use = trend(hours, [it * MIB for it in mib])
    return Growth(in_use, in_use, (0, 0), (0, 0))


def test_constant_memory_passes() -> None:
    chance = random.Random(1)
    assert not growth([100.0] * 40, 20).failure
    assert not growth([100 + chance.gauss(0, 0.02) for _ in range(40)], 20).failure


def test_steady_growth_is_a_leak() -> None:
    chance = random.Random(1)
    mib = [100 + 0.1 * number + chance.gauss(0, 0.1) for number in range(40)]
    assert growth(mib, 20).failure == "leaks memory"


def test_single_step_needs_more_samples() -> None:
    assert "too few samples" in growth([100.0] * 20 + [101.0] * 20, 20).failure


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(BenchError, match="too few"):
        slope([0, 1, 2], [1, 1, 1])


FRAGMENTING = """
import psutil
from bench.servers import in_use
in_use.free_unused()  # garbage of the imports
process = psutil.Process()
now = lambda: (in_use.in_use_bytes(), process.memory_info().rss)
first = now()
# Up to 512 bytes pymalloc allocates them, above that malloc; one in 400 stays and fragments memory.
blocks = [bytes(size) for size in (400, 4_000) for _ in range(10_000)]
high = now()
kept = blocks[::400]
del blocks
in_use.free_unused()
low = now()
print(high[0] - first[0], low[0] - first[0], low[1] - first[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallinfo2 is glibc's")
def test_memory_in_use_excludes_fragmentation() -> None:
    command = (sys.executable, "-c", FRAGMENTING)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    used_high, used_low, resident_low = map(int, done.stdout.split())
    made = 10_000 * (400 + 4_000)
    assert made < used_high < 1.1 * made
    assert made / 400 < used_low < 0.02 * made
    assert resident_low > 2 * used_low
