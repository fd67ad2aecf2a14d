"""Measures the service side by side with what it is compared with.

    python -m bench.run --quick
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated

import grpc
import typer

from bench.rounds import NOOP, PER_REQUEST, SERVICE, Rounds
from bench.scenarios import SCENARIOS, Bench, Scenario
from bench.stack import BenchError, stack
from coupon_service.embedded import EmbeddedError


@contextmanager
def bench(workers: int) -> Iterator[Bench]:
    """Everything started."""
    with ExitStack() as running:
        servers = running.enter_context(stack(workers))
        service = running.enter_context(servers.service())
        references = {
            name: running.enter_context(servers.reference(name)) for name in (NOOP, PER_REQUEST)
        }
        channel = running.enter_context(
            grpc.insecure_channel(service.address, [("grpc.enable_http_proxy", 0)])
        )
        yield Bench(servers, {SERVICE: service, **references}, channel)


def tell(scenario: Scenario, result: Rounds) -> None:
    """The figures of a scenario on a few lines."""
    print(f"\n{scenario.title}")
    for name in (SERVICE, *(rival.server for rival in scenario.rivals)):
        calls = [it.load.calls for it in result.of(name)]
        seen = result.of(name)
        cpu = 1e6 * sum(it.server_cpu_s for it in seen) / sum(calls)
        pg = 1e6 * sum(it.postgres_cpu_s for it in seen) / sum(calls)
        ghz = 1e6 * sum(it.load.cpu_s for it in seen) / sum(calls)
        errors = {k: v for it in seen for k, v in it.load.statuses.items() if k != "OK"}
        print(
            f"  {name:12} {result.per_s(name):7,.0f}/s  p50 {result.middle(name, lambda it: it.load.p50_ms):6.0f} ms"
            f"  p99 {result.middle(name, lambda it: it.load.p99_ms):6.0f} ms"
            f"  CPU us/call: server {cpu:5.0f} postgres {pg:5.0f} ghz {ghz:5.0f}"
            f"  shares {[round(min(it.shares, default=0), 2) for it in seen]} {errors or ''}"
        )
    for rival in scenario.rivals:
        ratios = result.ratios(SERVICE, rival.server)
        middle = sorted(ratios)[len(ratios) // 2]
        print(
            f"  {middle:.2f} of {rival.server} (target {rival.target}),"
            f" rounds {[round(it, 2) for it in ratios]}"
        )
    if result.conservation:
        print(f"  {result.conservation}")
    sys.stdout.flush()


def main(
    quick: Annotated[bool, typer.Option(help="Fewer and shorter rounds.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only these scenarios.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes of each server.")] = 2,
    rounds: int = 3,
    calls: int = 8_000,
) -> None:
    """Measure."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.perf_counter()
    try:
        with bench(workers) as running:
            print({k: round(v.start_s, 2) for k, v in running.servers.items()})
            for scenario in SCENARIOS:
                if only and scenario.name not in only:
                    continue
                tell(scenario, scenario.run(running, calls, rounds))
    except (BenchError, EmbeddedError) as error:
        sys.exit(str(error))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
