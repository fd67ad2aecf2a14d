"""Soak test: a long checkout load near capacity, which detects leaks.

    python -m bench.soak                       30 minutes at 70 % of the capacity it measures first
    python -m bench.soak --minutes 100 --rate 500

The shoppers of bench/loads/checkout.py come in rounds. After each round, when the last call is
answered and the clients are gone, the memory, descriptors and connections of each worker, of
PostgreSQL and of Redis are sampled. The samples after the warm-up show how each grows
(bench/measure/growth.py).

Tables and buffers keep the size of the most calls that were ever in flight. So the run starts with
a peak of four times the load, with thousands of calls in flight: more than a slow phase of the
machine causes later. Caches fill in the warm-up. The pool of each worker opens all connections at
the start, since each takes memory.

The run fails unless the memory in use of each worker grows by less than 1 MiB an hour, with 95 %
confidence. It also fails when descriptors grow, when more than one call in a thousand fails, or
when answers and database differ. Resident memory is reported and not judged: it includes
fragmentation, which a single slow phase increases by several MiB, while a leak is memory in use.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer

from bench.loads.caller import channel_to
from bench.loads.checkout import RATE_MIN, CheckoutLoad, Summary
from bench.loads.prepare import make_book
from bench.measure.conservation import Answers, check_book
from bench.measure.growth import Growth, Samples
from bench.servers import in_use
from bench.servers.stack import ROOT, BenchError, stack
from coupon_service.embedded import EmbeddedError
from coupon_service.settings import Settings
from coupon_service.v1.coupon_book_service_pb2 import LOCK_POLICY_OPTIONAL

CODES_COUNT: Final = 110_000
ROUND_S: Final = 20.0
POOL_SIZE: Final = str(Settings.model_fields["pool_max_size"].default)
"""The most connections that a worker opens."""

PEAK: Final = 4
"""Multiple of the load."""

PEAK_S: Final = 10.0

RATES: Final = (200, 300, 450, 650, 900, 1_200, 1_600, 2_100)
RATE_TRIES: Final = 2
HELD_P99_MS: Final = 250.0
"""A rate is sustained when one of the tries stays below this p99 and no call fails."""

ERRORS_MAX: Final = 0.001
"""Share of failed calls. On a busy machine Redis answers too late now and then."""


def capacity_per_s(checkout: CheckoutLoad) -> int:
    """The highest of RATES that the service sustains, in calls per second."""
    best = 0
    for rate in RATES:
        # A second try: first calls are slow, and so is a busy machine.
        if not any(_sustains(checkout, rate) for _ in range(RATE_TRIES)):
            break
        best = rate
    if not best:
        raise BenchError(f"The service does not sustain {RATES[0]} calls per second.")
    return best


def _sustains(checkout: CheckoutLoad, rate: int) -> bool:
    summary = checkout.shop(rate, ROUND_S)
    print(_line(summary), flush=True)
    return not summary.errors and summary.p99_ms <= HELD_P99_MS


def soak(checkout: CheckoutLoad, samples: Samples, rate: int, seconds: float) -> list[Summary]:
    """Rounds of shoppers for `seconds`, with a sample after each."""
    summaries: list[Summary] = []
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        summaries.append(checkout.shop(rate, ROUND_S))
        samples.take()
        print(
            f"{left_s / 60:5.1f} min to go: {_line(summaries[-1])}; {samples.latest()}", flush=True
        )
    return summaries


def _line(it: Summary) -> str:
    """A round as one line."""
    return (
        f"{it.rate} calls per second: p50 {it.p50_ms:.0f} ms, p99 {it.p99_ms:.0f} ms,"
        f" {sum(it.errors.values())} errors"
    )


def report(summaries: Sequence[Summary], growths: dict[str, Growth], conservation: str) -> str:
    """The report of a run, in Markdown."""
    errors = ", ".join(f"{count} {what}" for what, count in _errors(summaries).items()) or "none"
    p50_ms = median(it.p50_ms for it in summaries)
    p95_ms = median(it.p95_ms for it in summaries)
    p99_ms = median(it.p99_ms for it in summaries)
    lines = [
        f"{len(summaries)} rounds, {_calls(summaries):,} calls; errors: {errors}.",
        f"Medians of the rounds: p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms, p99 {p99_ms:.1f} ms.",
        "Medians of the first and the last third after the warm-up; memory in MiB:",
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
    """All calls, those of each round's warm-up included."""
    answered = sum(sum(it.ok.values()) for it in summaries)
    return answered + sum(_errors(summaries).values())


def _errors(summaries: Sequence[Summary]) -> Counter[str]:
    errors: Counter[str] = Counter()
    for it in summaries:
        errors.update(it.errors)
    return errors


def main(
    minutes: Annotated[
        float, typer.Option(min=3, max=1_440, help="Minutes after the warm-up.")
    ] = 30,
    warm_up: Annotated[float, typer.Option(min=0, max=60, help="Minutes of warm-up.")] = 15,
    rate: Annotated[
        int | None,
        typer.Option(min=RATE_MIN, help="Calls per second. Default: a share of the capacity."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.5, max=1, help="Share of the measured capacity.")
    ] = 0.7,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    out: Annotated[Path, typer.Option(help="File for the samples.")] = ROOT
    / "bench"
    / "out"
    / "soak.json",
) -> None:
    """Load the service for a long time and fail when it leaks."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warm_up_s = warm_up * 60
    try:
        with (
            stack(workers) as servers,
            servers.service(in_use.__name__, pool_min_size=POOL_SIZE) as service,
        ):
            with channel_to(service.address) as channel:
                codes = [f"SOAKCHECKOUT{number}" for number in range(CODES_COUNT)]
                book_id = make_book(channel, "soak", codes, lock_policy=LOCK_POLICY_OPTIONAL)
                checkout = CheckoutLoad(codes, channel, service.address, servers.folder, Answers())
                rate = rate or int(share * capacity_per_s(checkout))
                print(_line(checkout.shop(PEAK * rate, PEAK_S)), flush=True)
                print(f"{warm_up:g} + {minutes:g} minutes at {rate:,} calls per second", flush=True)
                samples = Samples(servers, service)
                summaries = soak(checkout, samples, rate, warm_up_s + minutes * 60)
            conservation = check_book(servers.postgres.url, book_id, checkout.answers)
        growths = samples.growths(warm_up_s)
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "rounds": [asdict(it) for it in summaries],
        "growths": {name: asdict(it) for name, it in growths.items()},
        "times_s": samples.times_s,
        "usages": {name: [asdict(it) for it in usages] for name, usages in samples.usages.items()},
    }
    out.write_text(json.dumps(results), encoding="utf-8")
    print(f"\n{report(summaries, growths, conservation)}")
    sys.exit("; ".join(failures(summaries, growths)) or None)


def failures(summaries: Sequence[Summary], growths: dict[str, Growth]) -> list[str]:
    """The criteria that the run fails."""
    failed = [f"{name} {it.failure}" for name, it in growths.items() if it.failure]
    failed += [
        f"{name} leaks descriptors"
        for name, it in growths.items()
        # PostgreSQL opens its files on demand.
        if it.leaks_descriptors and name != "PostgreSQL"
    ]
    if sum(_errors(summaries).values()) > _calls(summaries) * ERRORS_MAX:
        failed.append("calls failed")
    return failed


if __name__ == "__main__":
    typer.run(main)
