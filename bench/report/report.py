"""Tells what was found: to the terminal, and in bench/REPORT.md."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from bench.measure.rounds import NOOP, PER_REQUEST, SERVICE
from bench.report import plots
from bench.report.results import Comparison, Figures, Found, Row, load_found
from bench.servers.stack import POSTGRES_SETTINGS, ROOT

REPORT: Final = ROOT / "bench" / "REPORT.md"
NAMES: Final = {SERVICE: "service", NOOP: "no-op", PER_REQUEST: "a transaction a request"}

INTRODUCTION: Final = """# Measured

Made by `make bench` and `make bench-10m`; `make bench-quick` shows the most important on the
terminal. Client, service, PostgreSQL and Redis share one machine, so the ratios count, and not how
fast the machine is: each round puts the same load on each server in turn (A B A B …), and a ratio
is the median of those of the rounds. After every round on a server with a database, the OK answers,
the ledger, the counters and the rows of the codes were compared; the run fails when they differ.

The servers: the **service**, as it runs in production (`coupon-service serve`: request log,
metrics, tokens of the callers, rate limits, a request_id on every call, ledger, every commit on
disk; only Redis has 250 ms to answer, since it has to share the cores with all the others);
a **no-op** server, which answers a constant and is the limit of grpcio on the machine; and one that
makes **a transaction a request**, which is what most people would write: the same contract, schema
and effects, a row lock, a pool of 20 connections in all (both in `bench/servers/`). All have as
many workers, behind one port with SO_REUSEPORT. ghz has 1,000 calls in flight on 50 connections.

[docs/performance.md](../docs/performance.md) says what was tried, and what it brought.
"""


def told(row: Row) -> str:
    """A scenario on a few lines of the terminal."""
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
    """Writes bench/REPORT.md from all that is kept in bench/out."""
    table, millions = load_found("table"), load_found("millions")
    parts = [INTRODUCTION]
    if table is not None:
        parts += [_machine(table), *_table(table)]
    if millions is not None:
        count = millions.parts["generation"]["count"]
        parts += [f"## {count:,} codes in a book\n", _machine(millions), *_millions(millions)]
    REPORT.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    print(f"Written: {REPORT.relative_to(ROOT)}")


def _machine(found: Found) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in POSTGRES_SETTINGS.items())
    about = "; ".join(f"{name} {value}" for name, value in found.about.items())
    return f"{about}. PostgreSQL: {settings}, else its defaults.\n"


def _grid(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    line = "|" + "---|" * columns
    return "\n".join([head, line, *rows]) + "\n"


# --- make bench ---------------------------------------------------------------------------------


def _table(found: Found) -> Iterator[str]:
    yield "## Against the targets\n"
    ratios = [
        f"| {row.title} | {NAMES[it.rival]} | {it.ratio:.2f} | {it.low:.2f}-{it.high:.2f}"
        f" | {it.target:g} | {_verdict(it.ratio >= it.target)} |"
        for row in found.rows
        for it in row.comparisons
    ]
    ratios += _other_targets(found)
    yield _grid("| load | against | ratio | rounds | target | |", ratios)
    yield "## Absolute figures, and where the processor time goes\n"
    yield (
        "Processor time in µs a call; with all cores busy, their sum is what decides the"
        " throughput.\n"
    )
    yield _grid(
        "| load | server | OK/s | p50 ms | p95 ms | p99 ms | server | PostgreSQL | Redis | ghz |"
        " least worker |",
        [_figures(row, it) for row in found.rows for it in row.figures],
    )
    errors = [
        f"{row.title}, {NAMES[it.server]}: {it.errors}."
        for row in found.rows
        for it in row.figures
        if it.errors
    ]
    yield "Calls that were not answered OK: " + (" ".join(errors) or "none.") + "\n"
    yield "## What 10,000 calls a second take\n"
    yield (
        "Busy processor cores of this kind, from the times above (BatchRedeemCodes: for 10,000"
        " codes). A fleet runs at two thirds of that, or less, so plan for half as many again.\n"
    )
    yield _grid(
        "| load | service | PostgreSQL | Redis |",
        [_cores(row, row.figures[0]) for row in found.rows],
    )
    yield "## Conservation\n"
    yield "".join(f"- {row.title}: {row.conservation}\n" for row in found.rows if row.conservation)
    yield from _parts(found.parts)


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


def _other_targets(found: Found) -> Iterator[str]:
    parts = found.parts
    if direct := parts.get("direct"):
        ratio, per_s = median(direct["ratios"]), direct["service_per_s"]
        low, high = min(direct["ratios"]), max(direct["ratios"])
        yield (
            f"| BatchRedeemCodes, 1,000 a call | its statements through psycopg | {ratio:.2f}"
            f" | {low:.2f}-{high:.2f} | 0.7 | {_verdict(ratio >= 0.7)} |"
        )
        yield f"| … codes a second | | {per_s:,.0f} | | 10,000 | {_verdict(per_s >= 10_000)} |"
    if tills := parts.get("tills"):
        runs = [it for it in tills["service"] if it["rate"] == 1_000]
        for percent, target in ((95, 20), (99, 50)):
            values = [it[f"p{percent}_ms"] for it in runs]
            yield (
                f"| the till, 1,000/s open on 1,000 connections, p{percent} ms | |"
                f" {median(values):.1f} | {min(values):.1f}-{max(values):.1f} | < {target}"
                f" | {_verdict(median(values) < target)} |"
            )
        errors = sum(sum(it["errors"].values()) for it in runs)
        yield f"| … errors | | {errors} | | 0 | {_verdict(errors == 0)} |"
    if fairness := parts.get("fairness"):
        pairs = zip(fairness["alone_ms"], fairness["beside_ms"], strict=True)
        ratios = [beside / alone for alone, beside in pairs]
        yield (
            f"| the till, p95 beside calls of 1,000 codes | alone | {median(ratios):.2f}"
            f" | {min(ratios):.2f}-{max(ratios):.2f} | ≤ 2 | {_verdict(median(ratios) <= 2)} |"
        )
    if starts := parts.get("starts"):
        values = starts["service_s"]
        yield (
            f"| cold start to SERVING, s | | {median(values):.2f} | {min(values):.2f}-"
            f"{max(values):.2f} | < 2 | {_verdict(median(values) < 2)} |"
        )


def _parts(parts: dict[str, Any]) -> Iterator[str]:
    if tills := parts.get("tills"):
        yield "## The till: an open load on 1,000 connections\n"
        yield (
            "Shoppers validate, lock, and redeem with the token; every seventh unlocks instead,"
            " every twentieth redemption is rolled back. A ghz for each kind of call sends its part"
            " of the rate, whether earlier calls were answered or not, with locks and redemptions"
            " that were made beforehand (`bench/loads/till.py`). Latency counts from the moment at"
            " which a call was due, so it has in it how late ghz was.\n"
        )
        rows: list[str] = []
        for server in (SERVICE, NOOP):
            ordered = sorted(tills[server], key=lambda it: it["rate"])
            rows += [_till(NAMES[server], it) for it in ordered]
        kinds = ", ".join(tills[SERVICE][0]["p95_ms_of"])
        yield _grid(
            f"| server | calls/s | sent/s | p50 ms | p95 ms | p99 ms | p95 ms: {kinds}"
            " | ghz late p99 ms | ghz cores | errors |",
            rows,
        )
        yield plots.till_latency(tills) + "\n"
        yield f"Conservation: {tills['conservation']}.\n"
    if fairness := parts.get("fairness"):
        yield (
            "At 300 calls/s, beside a BatchRedeemCodes of 1,000 codes every half second, which took"
            f" {fairness['large_ms']:.0f} ms, the p95 was {median(fairness['beside_ms']):.1f} ms;"
            f" without it {median(fairness['alone_ms']):.1f} ms. {fairness['conservation']}.\n"
        )
    if curves := parts.get("curves"):
        yield "## Throughput by calls in flight\n"
        yield "One hot code:\n\n" + plots.throughput(curves, "redeem-hot") + "\n"
        yield "Each call another code:\n\n" + plots.throughput(curves, "redeem-spread") + "\n"
    if pgbench := parts.get("pgbench"):
        yield "## PostgreSQL alone\n"
        yield (
            "pgbench, 20 clients, the transaction of one redemption"
            " (`bench/loads/scenarios/redeem.pgbench.sql`):"
            f" {pgbench['hot_per_s']:,.0f}/s on one hot code,"
            f" {pgbench['spread_per_s']:,.0f}/s spread. What the service does above that comes from"
            f" joining commands. {pgbench['conservation']}.\n"
        )


def _till(server: str, it: dict[str, Any]) -> str:
    kinds = ", ".join(f"{p95_ms:.1f}" for p95_ms in it["p95_ms_of"].values())
    return (
        f"| {server} | {it['rate']:,} | {it['sent_per_s']:,.0f} | {it['p50_ms']:.1f}"
        f" | {it['p95_ms']:.1f} | {it['p99_ms']:.1f} | {kinds} | {it['late_p99_ms']:.1f}"
        f" | {it['client_cores']:.2f} | {sum(it['errors'].values())} |"
    )


# --- make bench-10m -----------------------------------------------------------------------------


def _millions(found: Found) -> Iterator[str]:
    parts = found.parts
    generated = parts["generation"]
    ratio = generated["copy_s"] / generated["generate_s"]
    count = generated["count"]
    yield (
        f"GenerateCodes made {count:,} codes in {generated['generate_s']:,.0f} s"
        f" ({count / generated['generate_s']:,.0f}/s); COPY of as many random codes, unsorted, into"
        f" the same table and indexes took {generated['copy_s']:,.0f} s"
        f" ({count / generated['copy_s']:,.0f}/s). Ratio {ratio:.2f}, target 1:"
        f" {_verdict(ratio >= 1)}. The largest worker had {generated['worker_mib']:,.0f} MiB,"
        f" target 300: {_verdict(generated['worker_mib'] < 300)}.\n"
    )
    yield plots.generation(generated["curves"]) + "\n"
    if imported := parts.get("import"):
        ratio = imported["copy_s"] / imported["import_s"]
        yield (
            f"ImportCodes took {imported['import_s']:,.0f} s for {imported['count']:,} codes of a"
            f" file, COPY {imported['copy_s']:,.0f} s: {ratio:.2f}, target 0.6:"
            f" {_verdict(ratio >= 0.6)}.\n"
        )
    if row := next(iter(found.rows), None):
        yield "".join(f"{row.title}: {_ratio(it)}.\n" for it in row.comparisons)
        yield f"Conservation: {row.conservation}.\n"
    points = parts["points"]
    yield "Latency of one call after the other (p50 ms, p99 in brackets):\n"
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
        f" The largest worker after all of it: {parts['worker_mib']:,.0f} MiB.\n"
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
