"""Plots of the report, as SVG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

from bench.servers.stack import ROOT

PLOTS: Final = ROOT / "bench" / "plots"
STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "coupon-service",  # reproducible: the same figures give the same file
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.figsize": (6.4, 3.4),
    "lines.marker": "o",
    "lines.markersize": 3.5,
}
NAMES: Final = {
    "service": "the service",
    "noop": "no-op",
    "per_request": "a transaction per request",
}


def plot(name: str, draw: Callable[[Any], None]) -> str:
    """Write bench/plots/<name>.svg; returns the Markdown that shows it."""
    library: Any = mpl
    pyplot: Any = plt
    PLOTS.mkdir(exist_ok=True)
    with library.rc_context(STYLE):
        figure, axes = pyplot.subplots()
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
    return f"![{name}](plots/{name}.svg)"


def throughput(curves: dict[str, Any], scenario: str) -> str:
    """OK answers per second by calls in flight."""

    def draw(axes: Any) -> None:
        for server, per_s in curves["per_s"][scenario].items():
            axes.plot(curves["concurrencies"], per_s, label=NAMES[server])
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("calls in flight")
        axes.set_ylabel("OK answers per second")

    return plot(f"throughput-{scenario}", draw)


def checkout_latency(checkouts: dict[str, Any]) -> str:
    """Latency of the checkout by its load."""
    return _latency_by_load("checkout-latency", checkouts)


def open_loop(found: dict[str, Any]) -> str:
    """Latency of RedeemCode by its load."""
    return _latency_by_load("open-loop-latency", found["points"])


def _latency_by_load(name: str, points: dict[str, Any]) -> str:
    service, noop = (sorted(points[it], key=lambda it: it["rate"]) for it in ("service", "noop"))

    def draw(axes: Any) -> None:
        for percent in (50, 95, 99):
            _latency(axes, service, percent, f"p{percent}", "-")
        _latency(axes, noop, 95, f"{NAMES['noop']}, p95", "--")
        axes.set_yscale("log")
        axes.set_xlabel("calls per second that are due")
        axes.set_ylabel("latency in ms")

    return plot(name, draw)


def _latency(
    axes: Any, summaries: list[dict[str, Any]], percent: int, label: str, style: str
) -> None:
    rates = [it["rate"] for it in summaries]
    axes.plot(rates, [it[f"p{percent}_ms"] for it in summaries], style, label=label)


def assignment_latency(points: list[dict[str, Any]]) -> str:
    """Latency of AssignRandomCode by the share of the book that is used up."""
    sizes = sorted({it["codes"] for it in points}, reverse=True)  # the large book has all labels

    def draw(axes: Any) -> None:
        for size in sizes:
            mine = [it for it in points if it["codes"] == size]
            labels = [str(it["used"]) for it in mine]
            axes.plot(labels, [it["assign_p50_ms"] for it in mine], label=f"{size:,} codes, p50")
            axes.plot(labels, [it["assign_p99_ms"] for it in mine], "--", label=f"{size:,}, p99")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("codes of the book that are used up")
        axes.set_ylabel("AssignRandomCode in ms")

    return plot("assignment-latency", draw)


def generation(curves: dict[str, list[tuple[float, int]]]) -> str:
    """Codes by time, of GenerateCodes and of COPY."""

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            seconds = [point[0] for point in points]
            axes.plot(seconds, [point[1] / 1e6 for point in points], label=name, marker="")
        axes.set_xlabel("seconds")
        axes.set_ylabel("million codes")

    return plot("generation", draw)
