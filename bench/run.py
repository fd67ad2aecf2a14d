"""Benchmark of the service against reference servers, which writes bench/REPORT.md.

python -m bench.run            all scenarios and parts, with plots
python -m bench.run --quick    the most important scenarios, to the terminal only
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Annotated, Final

import typer

from bench.loads.caller import channel_to
from bench.loads.scenarios import SCENARIOS, Bench
from bench.measure.parts import PARTS
from bench.measure.rounds import NOOP, PER_REQUEST, SERVICE
from bench.report.report import row_text, write_report
from bench.report.results import Results, Row, about_run
from bench.servers.stack import BenchError, stack
from coupon_service.embedded import EmbeddedError

QUICK: Final = ("redeem-hot", "redeem-spread", "health", "lock")
QUICK_SECONDS_MAX: Final = 140.0


@contextmanager
def bench(workers: int) -> Generator[Bench]:
    """The service and the reference servers, started."""
    with ExitStack() as running:
        servers = running.enter_context(stack(workers))
        service = running.enter_context(servers.service())
        references = {
            name: running.enter_context(servers.reference(name)) for name in (NOOP, PER_REQUEST)
        }
        channel = running.enter_context(channel_to(service.address))
        yield Bench(servers, {SERVICE: service, **references}, channel)


def main(
    quick: Annotated[
        bool, typer.Option(help="A shorter run, under three minutes, without a report.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this scenario or part, without a report.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of each server.")] = 2,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each scenario.")] = None,
    calls: Annotated[
        int | None, typer.Option(min=1_000, max=20_000, help="Calls of each round.")
    ] = None,
) -> None:
    """Measure the service, the no-op server and the transaction-per-request server in turn."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    selected = only or (QUICK if quick else [it.name for it in SCENARIOS] + list(PARTS))
    rounds = rounds or (2 if quick else 5)
    calls = calls or (5_000 if quick else 20_000)
    started = time.perf_counter()
    try:
        with bench(workers) as running:
            results = Results(about_run(running.stack, rounds, calls))
            for scenario in SCENARIOS:
                if scenario.name not in selected:
                    continue
                if quick and time.perf_counter() - started > QUICK_SECONDS_MAX:
                    print(f"Skipped, since the time is up: {scenario.title}.")
                    continue
                row = Row.of(scenario, scenario.run(running, calls, rounds))
                results.rows.append(row)
                print(row_text(row), flush=True)
            for name, part in PARTS.items():
                if name in selected:
                    results.parts[name] = asdict(part(running, rounds))
                    print(f"\n{name}: {results.parts[name]}", flush=True)
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    print(f"\n{time.perf_counter() - started:.0f} s")
    if not quick and not only:
        results.save("table")
        write_report()


if __name__ == "__main__":
    typer.run(main)
