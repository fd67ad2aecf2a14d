"""`coupon-service top`: what running services do now, read from their metrics ports."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Annotated, Final
from urllib.request import ProxyHandler, build_opener

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coupon_service.cli.client import url_host
from coupon_service.cli.failure import CommandError
from coupon_service.settings import load_settings

TIMEOUT_S: Final = 2.0

SAME_EVERYWHERE: Final = frozenset(
    {
        "coupon_book_left",
        "coupon_book_low_threshold",
        "coupon_books_watched",
        "coupon_locks_live",
        "coupon_sweep_lag_seconds",
        "coupon_ledger_lag_seconds",
        "coupon_ledger_sealed_number",
        "coupon_ledger_seal_lag_seconds",
    }
)
"""Gauges that every replica reads from the same database: the greatest counts, not the sum."""

METHODS_MAX: Final = 15
REASONS_MAX: Final = 10
BOOKS_MAX: Final = 8

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[tuple[str, Labels], float]
"""The value of each series, by its name and sorted labels."""

Found = Mapping[str, Samples | None]
"""What each target answered; None for one that cannot be reached."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted between two scrapes of the same targets, `seconds` apart."""

    before: Samples
    after: Samples
    seconds: float

    def rates(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """How much a counter grew a second, by the values of these labels. Zeros are left out."""
        return {key: rate for key, rate in self._growth(name, *by).items() if rate > 0}

    def _growth(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """As `rates`, with the zeros. A counter that fell began anew with its process."""
        grown: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for (series, labels), value in self.after.items():
            if series == name:
                before = self.before.get((series, labels), 0.0)
                of = dict(labels)
                added = value - before if value >= before else value
                grown[tuple(of.get(label, "") for label in by)] += added
        return {key: value / self.seconds for key, value in grown.items()}

    def gauge(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """The values of a gauge now, by the values of these labels."""
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for (series, labels), value in self.after.items():
            if series == name:
                of = dict(labels)
                found[tuple(of.get(label, "") for label in by)] += value
        return dict(found)

    def quantile_s(self, name: str, quantile: float, **of: str) -> float | None:
        """A quantile of a histogram of seconds, as Prometheus's histogram_quantile estimates it.

        `of`: labels that the series have. None when nothing was observed.
        """
        buckets = {
            float(bound): rate
            for (bound, *values), rate in self._growth(f"{name}_bucket", "le", *of).items()
            if tuple(values) == tuple(of.values())
        }
        total = max(buckets.values(), default=0.0)
        lower_s = lower = 0.0
        for bound_s in sorted(buckets):
            if buckets[bound_s] >= quantile * total > 0:
                if bound_s == float("inf"):
                    return lower_s
                inside = (quantile * total - lower) / ((buckets[bound_s] - lower) or 1)
                return lower_s + (bound_s - lower_s) * inside
            lower_s, lower = bound_s, buckets[bound_s]
        return None


def top(
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The metrics port of a replica; may be repeated. Default: the one of the settings"
            " that hold here.",
            show_default=False,
        ),
    ] = None,
    *,
    interval_s: Annotated[
        float,
        typer.Option("--interval", metavar="SECONDS", min=0.2, max=3600, help="Between two looks."),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and end.")] = False,
) -> None:
    """Show what running services do: calls, refusals, batches, connections, locks, books.

    Reads their metrics ports only, and ends with Ctrl-C. All figures are of the last interval.
    """
    if target:
        targets = [checked_target(it) for it in target]
    else:
        settings = load_settings()
        targets = [f"{url_host(settings.metrics_host)}:{settings.metrics_port}"]
    console = Console()
    before, before_s = scrape(targets), time.monotonic()
    if all(samples is None for samples in before.values()):
        raise CommandError(
            f"No metrics can be read from {', '.join(targets)}: is the service running, and is"
            " this its metrics port (COUPON_METRICS_PORT), not its gRPC port?"
        )
    try:
        if once:
            time.sleep(interval_s)
            console.print(_next_screen(before, scrape(targets), time.monotonic() - before_s))
            return
        with Live(Text("reading ..."), console=console, screen=console.is_terminal) as live:
            while True:
                time.sleep(interval_s)
                after, after_s = scrape(targets), time.monotonic()
                live.update(_next_screen(before, after, after_s - before_s), refresh=True)
                before, before_s = after, after_s
    except KeyboardInterrupt:
        return


def scrape(targets: Sequence[str]) -> Found:
    """What the targets answer, all asked at the same time."""
    with ThreadPoolExecutor(len(targets)) as pool:
        return dict(zip(targets, pool.map(_samples_of, targets), strict=True))


def _samples_of(target: str) -> Samples | None:
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"http://{target}/metrics", timeout=TIMEOUT_S) as answer:
            return parsed(answer.read().decode())
    except (OSError, HTTPException, ValueError):
        return None


def parsed(text: str) -> Samples:
    """The samples in an exposition of Prometheus. Raises ValueError when it is none."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def merged(found: Found) -> Samples:
    """The samples of all targets together."""
    total: dict[tuple[str, Labels], float] = {}
    for samples in found.values():
        for series, value in (samples or {}).items():
            known = total.get(series)
            if known is None:
                total[series] = value
            else:
                total[series] = max(known, value) if series[0] in SAME_EVERYWHERE else known + value
    return total


def _next_screen(before: Found, after: Found, seconds: float) -> RenderableType:
    # A target that was away for one of the two looks has counted nothing that could be compared.
    both = [it for it in after if before[it] is not None and after[it] is not None]
    window = Window(
        merged({it: before[it] for it in both}), merged({it: after[it] for it in both}), seconds
    )
    return screen(window, [it for it, samples in after.items() if samples is None], len(after))


def screen(window: Window, unreachable: Sequence[str], targets: int) -> RenderableType:
    """All tables that have something to show."""
    tables = (_calls(window), _refusals(window), _batches(window), _resources(window))
    books = _books(window)
    parts: list[RenderableType] = [_heading(window, unreachable, targets)]
    parts += [table for table in (*tables, books) if table.row_count]
    return Group(*parts)


def _heading(window: Window, unreachable: Sequence[str], targets: int) -> Text:
    workers = window.gauge("coupon_workers", "state")
    calls = sum(window.rates("coupon_rpcs_total").values())
    heading = Text.assemble(
        (f"{calls:,.0f} calls/s", "bold"),
        f"   workers ready {workers.get(('ready',), 0):.0f} of"
        f" {workers.get(('configured',), 0):.0f}",
        f"   replicas {targets - len(unreachable)} of {targets}",
    )
    for target in unreachable:
        heading.append(f"\n{target} cannot be reached", style="bold red")
    return heading


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=False)
    table.add_column(first, min_width=34)
    for column in columns:
        table.add_column(column, justify="right", min_width=9)
    return table


def _calls(window: Window) -> Table:
    table = _table("\nCalls", "method", "calls/s", "not OK/s", "p50 ms", "p95 ms")
    rates = window.rates("coupon_rpcs_total", "method")
    ok = window.rates("coupon_rpcs_total", "method", "status")
    for (method,), rate in _largest(rates, METHODS_MAX):
        quantiles = (
            window.quantile_s("coupon_rpc_duration_seconds", quantile, method=method)
            for quantile in (0.5, 0.95)
        )
        bad = rate - ok.get((method, "OK"), 0.0)
        table.add_row(method, _rate(rate), _rate(bad), *map(_ms, quantiles))
    return table


def _refusals(window: Window) -> Table:
    table = _table("\nNot OK", "reason", "calls/s")
    reasons = window.rates("coupon_rpcs_total", "reason")
    reasons.pop(("",), None)
    for (reason,), rate in _largest(reasons, REASONS_MAX):
        table.add_row(reason, _rate(rate))
    return table


def _batches(window: Window) -> Table:
    table = _table("\nBatches", "kind", "queue", "batches/s", "size", "wait ms", "time ms")
    queues = window.gauge("coupon_queue_length", "kind")
    batches = window.rates("coupon_batch_size_commands_count", "kind")
    sizes = window.rates("coupon_batch_size_commands_sum", "kind")
    waits = window.rates("coupon_batch_wait_seconds_sum", "kind")
    times = window.rates("coupon_batch_duration_seconds_sum", "kind")
    for kind, rate in sorted(batches.items()):
        table.add_row(
            kind[0],
            f"{queues.get(kind, 0):.0f}",
            _rate(rate),
            f"{sizes.get(kind, 0) / rate:.1f}",
            _ms(waits.get(kind, 0) / rate),
            _ms(times.get(kind, 0) / rate),
        )
    return table


def _resources(window: Window) -> Table:
    table = _table("\nBehind it", "", "")
    one: Callable[[str], float] = lambda name: sum(window.gauge(name).values())  # noqa: E731
    rate: Callable[[str], float] = lambda name: sum(window.rates(name).values())  # noqa: E731
    table.add_row(
        "PostgreSQL: connections, idle, waited for",
        f"{one('coupon_pool_connections'):.0f}, {one('coupon_pool_idle_connections'):.0f},"
        f" {one('coupon_pool_waiting'):.0f}",
    )
    table.add_row(
        "transactions/s, tried again/s, p95 ms",
        f"{_rate(rate('coupon_transaction_duration_seconds_count'))},"
        f" {_rate(rate('coupon_transaction_retries_total'))},"
        f" {_ms(window.quantile_s('coupon_transaction_duration_seconds', 0.95))}",
    )
    table.add_row(
        "Redis: pipelines/s, errors/s, p95 ms",
        f"{_rate(rate('coupon_redis_duration_seconds_count'))},"
        f" {_rate(rate('coupon_redis_errors_total'))},"
        f" {_ms(window.quantile_s('coupon_redis_duration_seconds', 0.95))}",
    )
    table.add_row(
        "locks live, lost by Redis/s",
        f"{one('coupon_locks_live'):.0f}, {_rate(rate('coupon_locks_lost_total'))}",
    )
    return table


def _books(window: Window) -> Table:
    table = _table("\nBooks that run low", "book", "left", "threshold")
    thresholds = window.gauge("coupon_book_low_threshold", "book_id")
    left = window.gauge("coupon_book_left", "book_id")
    low = {book: count for book, count in left.items() if count <= thresholds.get(book, 0)}
    for book, count in sorted(low.items(), key=lambda it: it[1])[:BOOKS_MAX]:
        table.add_row(book[0], f"{count:.0f}", f"{thresholds[book]:.0f}")
    return table


def _largest(
    rates: Mapping[tuple[str, ...], float], most: int
) -> Sequence[tuple[tuple[str, ...], float]]:
    return sorted(rates.items(), key=lambda it: -it[1])[:most]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def checked_target(target: str) -> str:
    """The target as it stands in a URL, of which it may be one. Raises CommandError."""
    target = target.removeprefix("http://").removesuffix("/metrics").rstrip("/")
    host, colon, port = target.rpartition(":")
    if not (
        colon
        and host
        and "/" not in host
        and port.isascii()
        and port.isdigit()
        and 0 < int(port) < 65_536
    ):
        raise CommandError(f"--target {target}: expected HOST:PORT, such as 127.0.0.1:9464.")
    return target
