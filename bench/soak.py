"""A long time of shoppers at a good part of what the service can do: does it stay as it is?

    python -m bench.soak                       30 minutes at 70 % of the capacity it finds first
    python -m bench.soak --minutes 100 --rate 500

The shoppers of bench/loads/till.py come in rounds. After each, when the last call is answered and
the clients are gone, the memory, descriptors and connections of each worker, of PostgreSQL and of
Redis are noted, and what was noted after the warm-up says how each grows
(bench/measure/growth.py).

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
from bench.loads.prepare import make_book
from bench.loads.till import RATE_MIN, Summary, Till
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
"""As many connections as a worker opens at most."""

PEAK: Final = 4
"""Times the load."""

PEAK_S: Final = 10.0

RATES: Final = (200, 300, 450, 650, 900, 1_200, 1_600, 2_100)
RATE_TRIES: Final = 2
HELD_P99_MS: Final = 250.0
"""A rate is kept up with when this holds and nothing fails in one of the tries."""

ERRORS_MAX: Final = 0.001
"""Of the calls. A busy machine is late for Redis now and then, and says so."""


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
