"""Results of a run, stored in bench/out and rendered in the report."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg

from bench.loads.ghz import find_ghz
from bench.loads.scenarios import Scenario
from bench.measure.rounds import SERVICE, Measured, Rounds
from bench.servers.stack import ROOT, Stack
from coupon_service.embedded.postgres import EmbeddedPostgres

OUT: Final = ROOT / "bench" / "out"
PACKAGES: Final = ("grpcio", "protobuf", "uvloop", "psycopg", "redis")


@dataclass(frozen=True, slots=True)
class Figures:
    """One server under one load: medians over the rounds.

    CPU times in microseconds per call. `share_min`: the share of the work of the least busy worker.
    """

    server: str
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    server_us: float
    postgres_us: float
    redis_us: float
    client_us: float
    share_min: float
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Throughput of the service over that of a rival: median, least and greatest of the rounds."""

    rival: str
    target: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """The results of a scenario. `effects_per_call`: codes of a call."""

    name: str
    title: str
    figures: list[Figures]
    comparisons: list[Comparison]
    effects_per_call: int
    conservation: str

    @classmethod
    def of(cls, scenario: Scenario, rounds: Rounds) -> Row:
        """Summarise the rounds of a scenario."""
        servers = (SERVICE, *(rival.server for rival in scenario.rivals))
        comparisons: list[Comparison] = []
        for rival in scenario.rivals:
            ratios = rounds.ratios(SERVICE, rival.server)
            comparisons.append(
                Comparison(rival.server, rival.target, median(ratios), min(ratios), max(ratios))
            )
        return cls(
            name=scenario.name,
            title=scenario.title,
            figures=[_figures(rounds.of(server)) for server in servers],
            comparisons=comparisons,
            effects_per_call=scenario.effects_per_call,
            conservation=rounds.conservation,
        )


def _figures(rounds: Sequence[Measured]) -> Figures:
    errors: dict[str, int] = {}
    for it in rounds:
        for status, count in it.load.statuses.items():
            if status != "OK":
                errors[status] = errors.get(status, 0) + count
    return Figures(
        server=rounds[0].server,
        per_s=median(it.load.per_s for it in rounds),
        p50_ms=median(it.load.p50_ms for it in rounds),
        p95_ms=median(it.load.p95_ms for it in rounds),
        p99_ms=median(it.load.p99_ms for it in rounds),
        server_us=median(it.server_cpu_s / it.load.calls * 1e6 for it in rounds),
        postgres_us=median(it.postgres_cpu_s / it.load.calls * 1e6 for it in rounds),
        redis_us=median(it.redis_cpu_s / it.load.calls * 1e6 for it in rounds),
        client_us=median(it.load.cpu_s / it.load.calls * 1e6 for it in rounds),
        share_min=median(min(it.shares, default=0.0) for it in rounds),
        errors=errors,
    )


@dataclass(slots=True)
class Results:
    """Everything that one command measured; other parts are empty."""

    about: dict[str, str] = field(default_factory=dict[str, str])
    rows: list[Row] = field(default_factory=list[Row])
    parts: dict[str, Any] = field(default_factory=dict[str, Any])

    def save(self, name: str) -> None:
        """Write them to bench/out."""
        OUT.mkdir(exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")


def load_results(name: str) -> Results | None:
    """The results in bench/out, if there are any."""
    path = OUT / f"{name}.json"
    if not path.exists():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    rows: list[Row] = []
    for row in saved["rows"]:
        row["figures"] = [Figures(**it) for it in row["figures"]]
        row["comparisons"] = [Comparison(**it) for it in row["comparisons"]]
        rows.append(Row(**row))
    return Results(saved["about"], rows, saved["parts"])


def about_run(stack: Stack, rounds: int, calls: int) -> dict[str, str]:
    """The machine and its load, the versions, and the size of the run."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    with psycopg.connect(stack.postgres.url) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processors": f"{os.cpu_count()} × {models[0] if models else platform.machine()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        EmbeddedPostgres.name: row[0] if row else "",
        "ghz": _ghz_version(),
        **{package: version(package) for package in PACKAGES},
        "workers": str(stack.workers),
        "rounds": str(rounds),
        "calls per round": f"{calls:,}",
        "load average before": f"{os.getloadavg()[0]:.1f}",
    }


def _ghz_version() -> str:
    """The version from Go's build info, since `ghz --version` is set in released binaries only."""
    noted = re.search(rb"mod\tgithub\.com/bojand/ghz\tv([\d.]+)", find_ghz().read_bytes())
    return noted[1].decode() if noted else "unknown version"
