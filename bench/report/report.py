"""Reports of benchmark results: on the terminal, and in bench/REPORT.md."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from bench.measure.rounds import NOOP, PER_REQUEST, SERVICE
from bench.report import plots
from bench.report.results import Comparison, Figures, Results, Row, load_results
from bench.servers.stack import POSTGRES_SETTINGS, ROOT

REPORT: Final = ROOT / "bench" / "REPORT.md"
NAMES: Final = {SERVICE: "service", NOOP: "no-op", PER_REQUEST: "a transaction per request"}

INTRODUCTION: Final = """# Benchmark report

Written by `make bench` and `make bench-10m`; `make bench-quick` prints the most important results
to the terminal. Client, service, PostgreSQL and Redis share one machine, so read the ratios, not
the absolute figures: each round puts the same load on each server in turn (A B A B …), and a ratio
is the median over the rounds. After each round on a server with a database, the OK answers, the
ledger, the counters and the rows of the codes are compared; the run fails when they differ.

The servers: the **service**, as in production (`coupon-service serve`: access log, metrics,
authentication, rate limits, a request_id on every call, ledger, every commit on disk; only Redis
gets 250 ms to answer, since it shares the cores with all other processes); a **no-op** server,
which answers with a constant and shows the limit of grpcio on the machine; and one that runs
**a transaction per request**, the obvious implementation: the same contract, schema and effects, a
row lock, a pool of 20 connections in all (both in `bench/servers/`). All have the same number of
workers, behind one port with SO_REUSEPORT. ghz keeps 1,000 calls in flight on 50 connections.

[docs/performance.md](../docs/performance.md) lists what was tried, and with what effect.
"""


def row_text(row: Row) -> str:
    """The results of a scenario as a few lines for the terminal."""
    lines = [f"\n{row.title}"]
    for it in row.figures:
        errors = f"  {it.errors}" if it.errors else ""
        lines.append(
            f"  {NAMES[it.server]:24}{it.per_s:8,.0f}/s  p50 {it.p50_ms:7,.1f}"
            f"  p95 {it.p95_ms:7,.1f}  p99 {it.p99_ms:7,.1f} ms"
            f"   CPU µs a call: {it.server_us:5,.0f}"
            f" + PostgreSQL {it.postgres_us:5,.0f} + Redis {it.redis_us:4,.0f}"
            f" + ghz {it.client_us:4,.0f}"
            f"   least worker {it.share_min:.0%}{errors}"
        )
    lines += [f"  {_ratio(it)}" for it in row.comparisons]
    if row.conservation:
        lines.append(f"  {row.conservation}")
    return "\n".join(lines)


def _ratio(it: Comparison) -> str:
    times = f"{it.ratio:.2f} of {NAMES[it.rival]} ({it.low:.2f}-{it.high:.2f})"
    return f"{times}, target {it.target:g}: {_verdict(it.ratio >= it.target)}"


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def write_report() -> None:
    """Write bench/REPORT.md from the results in bench/out."""
    table, millions = load_results("table"), load_results("millions")
    parts = [INTRODUCTION]
    if table is not None:
        parts += [_machine(table), *_table(table)]
    if millions is not None:
        count = millions.parts["generation"]["count"]
        parts += [f"## {count:,} codes in a book\n", _machine(millions), *_millions(millions)]
    REPORT.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    print(f"Written: {REPORT.relative_to(ROOT)}")


def _machine(results: Results) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in POSTGRES_SETTINGS.items())
    about = "; ".join(f"{name} {value}" for name, value in results.about.items())
    return f"{about}. PostgreSQL: {settings}, otherwise its defaults.\n"


def _grid(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    line = "|" + "---|" * columns
    return "\n".join([head, line, *rows]) + "\n"


# --- make bench ---------------------------------------------------------------------------------


def _table(results: Results) -> Iterator[str]:
    yield "## Results against the targets\n"
    ratios = [
        f"| {row.title} | {NAMES[it.rival]} | {it.ratio:.2f} | {it.low:.2f}-{it.high:.2f}"
        f" | {it.target:g} | {_verdict(it.ratio >= it.target)} |"
        for row in results.rows
        for it in row.comparisons
    ]
    ratios += _other_targets(results)
    yield _grid("| load | against | ratio | rounds | target | |", ratios)
    yield "## Absolute figures and CPU time\n"
    yield "CPU time in µs per call. All cores are busy, so their sum limits the throughput.\n"
    yield _grid(
        "| load | server | OK/s | p50 ms | p95 ms | p99 ms | server | PostgreSQL | Redis | ghz |"
        " least worker |",
        [_figures(row, it) for row in results.rows for it in row.figures],
    )
    errors = [
        f"{row.title}, {NAMES[it.server]}: {it.errors}."
        for row in results.rows
        for it in row.figures
        if it.errors
    ]
    yield "Calls that were not answered OK: " + (" ".join(errors) or "none.") + "\n"
    yield "## CPU cores for 10,000 calls per second\n"
    yield (
        "Busy cores of this machine's kind, from the times above (BatchRedeemCodes: for 10,000"
        " codes). A fleet runs at two thirds of its capacity or less, so plan half as many again.\n"
    )
    yield _grid(
        "| load | service | PostgreSQL | Redis |",
        [_cores(row, row.figures[0]) for row in results.rows],
    )
    yield "## Conservation\n"
    yield "".join(
        f"- {row.title}: {row.conservation}\n" for row in results.rows if row.conservation
    )
    yield from _parts(results.parts)


def _figures(row: Row, it: Figures) -> str:
    return (
        f"| {row.title} | {NAMES[it.server]} | {it.per_s:,.0f} | {it.p50_ms:,.1f}"
        f" | {it.p95_ms:,.1f} | {it.p99_ms:,.1f} | {it.server_us:,.0f} | {it.postgres_us:,.0f}"
        f" | {it.redis_us:,.0f} | {it.client_us:,.0f} | {it.share_min:.0%} |"
    )


def _cores(row: Row, it: Figures) -> str:
    per_core = row.effects_per_call * 100
    return (
        f"| {row.title} | {it.server_us / per_core:.1f} | {it.postgres_us / per_core:.1f}"
        f" | {it.redis_us / per_core:.1f} |"
    )


def _other_targets(results: Results) -> Iterator[str]:
    parts = results.parts
    if direct := parts.get("direct"):
        ratio, per_s = median(direct["ratios"]), direct["service_per_s"]
        low, high = min(direct["ratios"]), max(direct["ratios"])
        yield (
            f"| BatchRedeemCodes, 1,000 per call | its statements through psycopg | {ratio:.2f}"
            f" | {low:.2f}-{high:.2f} | 0.7 | {_verdict(ratio >= 0.7)} |"
        )
        yield f"| … codes per second | | {per_s:,.0f} | | 10,000 | {_verdict(per_s >= 10_000)} |"
    if checkouts := parts.get("checkouts"):
        runs = [it for it in checkouts["service"] if it["rate"] == 1_000]
        for percent, target in ((95, 20), (99, 50)):
            values = [it[f"p{percent}_ms"] for it in runs]
            yield (
                f"| checkout, open load of 1,000/s on 1,000 connections, p{percent} ms | |"
                f" {median(values):.1f} | {min(values):.1f}-{max(values):.1f} | < {target}"
                f" | {_verdict(median(values) < target)} |"
            )
        errors = sum(sum(it["errors"].values()) for it in runs)
        yield f"| … errors | | {errors} | | 0 | {_verdict(errors == 0)} |"
    if fairness := parts.get("fairness"):
        pairs = zip(fairness["alone_ms"], fairness["beside_ms"], strict=True)
        ratios = [beside / alone for alone, beside in pairs]
        yield (
            f"| checkout, p95 beside calls of 1,000 codes | alone | {median(ratios):.2f}"
            f" | {min(ratios):.2f}-{max(ratios):.2f} | ≤ 2 | {_verdict(median(ratios) <= 2)} |"
        )
    if starts := parts.get("starts"):
        values = starts["service_s"]
        yield (
            f"| cold start to SERVING, s | | {median(values):.2f} | {min(values):.2f}-"
            f"{max(values):.2f} | < 2 | {_verdict(median(values) < 2)} |"
        )


def _parts(parts: dict[str, Any]) -> Iterator[str]:
    if checkouts := parts.get("checkouts"):
        yield "## Checkout: an open load on 1,000 connections\n"
        yield (
            "Shoppers validate a code, lock it, and redeem it with the lock token; every seventh"
            " unlocks instead, every twentieth redemption is rolled back. One ghz for each kind of"
            " call sends its share of the rate, whether earlier calls were answered or not, with"
            " locks and redemptions that were made beforehand (`bench/loads/checkout.py`). Latency"
            " counts from the time at which a call was due, so it includes delays of ghz.\n"
        )
        rows: list[str] = []
        for server in (SERVICE, NOOP):
            ordered = sorted(checkouts[server], key=lambda it: it["rate"])
            rows += [_checkout(NAMES[server], it) for it in ordered]
        kinds = ", ".join(checkouts[SERVICE][0]["p95_ms_of"])
        yield _grid(
            f"| server | calls/s | sent/s | p50 ms | p95 ms | p99 ms | p95 ms: {kinds}"
            " | ghz late p99 ms | ghz cores | errors |",
            rows,
        )
        yield plots.checkout_latency(checkouts) + "\n"
        yield f"Conservation: {checkouts['conservation']}.\n"
    if fairness := parts.get("fairness"):
        yield (
            "At 300 calls/s, beside a BatchRedeemCodes of 1,000 codes every half second, which took"
            f" {fairness['large_ms']:.0f} ms, the p95 was {median(fairness['beside_ms']):.1f} ms;"
            f" without it {median(fairness['alone_ms']):.1f} ms. {fairness['conservation']}.\n"
        )
    if curves := parts.get("curves"):
        yield "## Throughput by calls in flight\n"
        yield "One hot code:\n\n" + plots.throughput(curves, "redeem-hot") + "\n"
        yield "A different code per call:\n\n" + plots.throughput(curves, "redeem-spread") + "\n"
    if found := parts.get("open_loop"):
        yield from _open_loop(found)
    if found := parts.get("streams"):
        yield from _streams(found)
    if found := parts.get("stream_latency"):
        yield from _stream_latency(found)
    if pgbench := parts.get("pgbench"):
        yield "## PostgreSQL alone\n"
        yield (
            "pgbench, 20 clients, the transaction of one redemption"
            " (`bench/loads/scenarios/redeem.pgbench.sql`):"
            f" {pgbench['hot_per_s']:,.0f}/s on one hot code,"
            f" {pgbench['spread_per_s']:,.0f}/s spread. The service exceeds that by batching"
            f" commands. {pgbench['conservation']}.\n"
        )


def _open_loop(found: dict[str, Any]) -> Iterator[str]:
    yield "## Latency by load\n"
    yield (
        f"RedeemCode on one hot code, sent when it is due on {found['connections']} connections, at"
        f" shares of the {found['closed_per_s']:,.0f} calls per second that a closed loop of 1,000"
        f" calls reached. {found['conservation']}.\n"
    )
    rows = [
        f"| {NAMES[server]} | {it['rate']:,.0f} | {it['sent_per_s']:,.0f} | {it['p50_ms']:.1f}"
        f" | {it['p95_ms']:.1f} | {it['p99_ms']:.1f} | {it['errors']} |"
        for server in (SERVICE, NOOP)
        for it in found["points"][server]
    ]
    yield _grid("| server | calls/s | sent/s | p50 ms | p95 ms | p99 ms | errors |", rows)
    yield plots.open_loop(found) + "\n"


def _streams(found: dict[str, Any]) -> Iterator[str]:
    yield "## Checkout streams\n"
    yield (
        "The same operations over 16 streams, one in a message unless it says otherwise, as calls"
        " with 1,000 in flight on 16 connections, and as calls of the no-op server, in turn. CPU"
        f" time in microseconds for each. {'; '.join(found['conservation'])}.\n"
    )
    rows: list[str] = []
    for it in found["compared"]:
        per_s, server_us = (
            {name: median(it[name][figure]) for name in ("streams", "calls", "noop")}
            for figure in ("per_s", "server_us")
        )
        ratios = {
            name: median(
                mine / other
                for mine, other in zip(it["streams"]["per_s"], it[name]["per_s"], strict=True)
            )
            for name in ("calls", "noop")
        }
        target = it["target"]
        verdict = "" if target is None else f"{target:.1f} {_verdict(ratios['calls'] >= target)}"
        rows.append(
            f"| {it['title']} | {per_s['streams']:,.0f} | {per_s['calls']:,.0f}"
            f" | {per_s['noop']:,.0f} | {ratios['calls']:.2f} | {verdict} | {ratios['noop']:.2f}"
            f" | {server_us['streams']:.0f} | {server_us['calls']:.0f}"
            f" | {median(it['streams']['postgres_us']):.0f}"
            f" | {median(it['streams']['client_us']):.0f} |"
        )
    yield _grid(
        "| operation | streams/s | calls/s | no-op/s | of calls | target | of no-op"
        " | worker µs | as a call | PostgreSQL µs | ghz µs |",
        rows,
    )


def _stream_latency(found: dict[str, Any]) -> Iterator[str]:
    yield "### Latency over streams\n"
    yield (
        "Shoppers who validate, lock and redeem one after the other, 1,000 operations a second,"
        " whether earlier ones were answered or not, from one process of ours"
        " (`bench/loads/shoppers.py`) on 16 connections. Latency counts from when an operation was"
        f" due. {found['conservation']}.\n"
    )
    names = {"streams": "service, streams", "calls": "service, calls", "noop": "no-op, calls"}
    rows: list[str] = []
    for key, name in names.items():
        per_s, *times = (
            median(it[figure] for it in found[key])
            for figure in ("per_s", "p50_ms", "p95_ms", "p99_ms")
        )
        worst = max(it["p95_ms"] for it in found[key])
        errors = sum(it["errors"] for it in found[key])
        cells = " | ".join(f"{it:.1f}" for it in (*times, worst))
        rows.append(f"| {name} | {per_s:,.0f} | {cells} | {errors} |")
    yield _grid("| server | sent/s | p50 ms | p95 ms | p99 ms | worst p95 ms | errors |", rows)


def _checkout(server: str, it: dict[str, Any]) -> str:
    kinds = ", ".join(f"{p95_ms:.1f}" for p95_ms in it["p95_ms_of"].values())
    return (
        f"| {server} | {it['rate']:,} | {it['sent_per_s']:,.0f} | {it['p50_ms']:.1f}"
        f" | {it['p95_ms']:.1f} | {it['p99_ms']:.1f} | {kinds} | {it['late_p99_ms']:.1f}"
        f" | {it['client_cores']:.2f} | {sum(it['errors'].values())} |"
    )


# --- make bench-10m -----------------------------------------------------------------------------


def _millions(results: Results) -> Iterator[str]:
    parts = results.parts
    generated = parts["generation"]
    ratio = generated["copy_s"] / generated["generate_s"]
    count = generated["count"]
    yield (
        f"GenerateCodes generated {count:,} codes in {generated['generate_s']:,.0f} s"
        f" ({count / generated['generate_s']:,.0f}/s). COPY of as many random codes, unsorted, into"
        f" the same table and indexes took {generated['copy_s']:,.0f} s"
        f" ({count / generated['copy_s']:,.0f}/s). Ratio {ratio:.2f}, target 1:"
        f" {_verdict(ratio >= 1)}. The largest worker had {generated['worker_mib']:,.0f} MiB,"
        f" target 300: {_verdict(generated['worker_mib'] < 300)}.\n"
    )
    yield plots.generation(generated["curves"]) + "\n"
    if imported := parts.get("import"):
        ratio = imported["copy_s"] / imported["import_s"]
        yield (
            f"ImportCodes of {imported['count']:,} codes from a file took"
            f" {imported['import_s']:,.0f} s, COPY {imported['copy_s']:,.0f} s. Ratio {ratio:.2f},"
            f" target 0.6: {_verdict(ratio >= 0.6)}.\n"
        )
    if row := next(iter(results.rows), None):
        yield "".join(f"{row.title}: {_ratio(it)}.\n" for it in row.comparisons)
        yield f"Conservation: {row.conservation}.\n"
    points = parts["points"]
    yield "Latency of sequential calls (p50 ms, p99 in brackets):\n"
    kinds = [key.removesuffix("_p50_ms") for key in points[0] if key.endswith("_p50_ms")]
    yield _grid(
        "| codes | used up | " + " | ".join(kinds) + " |",
        [
            f"| {it['codes']:,} | {it['used']} | "
            + " | ".join(
                f"{it[f'{kind}_p50_ms']:.1f} ({it[f'{kind}_p99_ms']:.1f})" for kind in kinds
            )
            + " |"
            for it in points
        ],
    )
    yield plots.assignment_latency(points) + "\n"
    yield from _flatness(points)
    yield (
        f"Exporting the book: {parts['export']['per_s']:,.0f} codes/s."
        f" The largest worker at the end: {parts['worker_mib']:,.0f} MiB.\n"
    )


def _flatness(points: list[dict[str, Any]]) -> Iterator[str]:
    at = {(it["codes"], it["used"]): it["assign_p50_ms"] for it in points}
    sizes = sorted({it["codes"] for it in points})
    large = sizes[-1]
    rows: list[str] = []
    if len(sizes) > 1:
        ratio = at[large, "0 %"] / at[sizes[0], "0 %"]
        rows.append(
            f"| AssignRandomCode at {large:,} codes | at {sizes[0]:,} | {ratio:.2f} | ≤ 1.3"
            f" | {_verdict(ratio <= 1.3)} |"
        )
    for used in ("99.9 %", "all"):
        if (large, used) not in at:
            continue
        ratio = at[large, used] / at[large, "0 %"]
        rows.append(
            f"| … {used} used up | at 0 % | {ratio:.2f} | ≤ 1.5 | {_verdict(ratio <= 1.5)} |"
        )
    yield _grid("| latency | against | ratio | target | |", rows)
