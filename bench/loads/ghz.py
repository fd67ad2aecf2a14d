"""Runs of ghz with the configurations of bench/loads/scenarios."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import proto
from google.protobuf.message import Message

from bench.loads.caller import metadata
from bench.servers.stack import ROOT, BenchError

SCENARIOS: Final = ROOT / "bench" / "loads" / "scenarios"
TIMEOUT_S: Final = 180.0

UNKNOWN: Final = frozenset({"Unavailable", "DeadlineExceeded", "Canceled", "Internal", "Unknown"})
"""Statuses after which the outcome of a call is unknown."""

Config = Mapping[str, Any]
Report = Mapping[str, Any]
"""The output of ghz with --format json."""


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a run. Times in milliseconds; `cpu_s`: CPU time of ghz, in seconds."""

    calls: int
    seconds: float
    statuses: Mapping[str, int]
    errors: Mapping[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_s: float

    @property
    def ok(self) -> int:
        """Calls that were answered OK."""
        return self.statuses.get("OK", 0)

    @property
    def unknown(self) -> int:
        """Calls with an unknown outcome."""
        return sum(count for status, count in self.statuses.items() if status in UNKNOWN)

    @property
    def per_s(self) -> float:
        """OK answers per second."""
        return self.ok / self.seconds


def find_ghz() -> Path:
    """The path of ghz. Raises BenchError."""
    own = ROOT / ".tools" / "ghz"
    found = str(own) if own.exists() else shutil.which("ghz")
    if found is None:
        raise BenchError("ghz is missing: make tools installs it.")
    return Path(found)


def scenario(name: str) -> dict[str, Any]:
    """A configuration of bench/loads/scenarios."""
    return json.loads((SCENARIOS / f"{name}.json").read_text(encoding="utf-8"))


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of the values; 0 without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] if ordered else 0.0


def messages(file: Path, requests: Iterable[Message]) -> dict[str, Any]:
    """The configuration that makes ghz send these serialised requests, which costs it least."""
    with file.open("wb") as opened:
        output: Any = opened  # declared as BytesIO
        for request in requests:
            proto.serialize_length_prefixed(request, output)
    return {"data": None, "binary-file": str(file)}


def run_ghz(config: Config, address: str, folder: Path) -> Load:
    """Put the load on the server. Raises BenchError."""
    (report,), cpu_s = run_together([config], address, folder)
    latency_ms = {
        it["percentage"]: it["latency"] / 1e6 for it in report["latencyDistribution"] or ()
    }
    return Load(
        calls=report["count"],
        seconds=report["total"] / 1e9,
        statuses=report["statusCodeDistribution"],
        errors=report["errorDistribution"],
        p50_ms=latency_ms.get(50, 0.0),
        p95_ms=latency_ms.get(95, 0.0),
        p99_ms=latency_ms.get(99, 0.0),
        cpu_s=cpu_s,
    )


def run_together(
    configs: Sequence[Config], address: str, folder: Path
) -> tuple[list[Report], float]:
    """Put several loads on the server at the same time, each from its own ghz.

    Returns their reports and the CPU time of all, in seconds. Raises BenchError.
    """
    before = os.times()
    with ThreadPoolExecutor(len(configs)) as threads:
        running = [
            threads.submit(_run, config, address, folder, f"ghz-{number}")
            for number, config in enumerate(configs)
        ]
    after = os.times()
    return [it.result() for it in running], sum(after[2:4]) - sum(before[2:4])


def _run(config: Config, address: str, folder: Path, name: str) -> Report:
    config_file, report_file = folder / f"{name}.json", folder / f"{name}-report.json"
    config_file.write_text(
        json.dumps({**config, "host": address, "metadata": dict(metadata())}), encoding="utf-8"
    )
    command = [str(find_ghz()), "--config", str(config_file)]
    command += ["--format", "json", "--output", str(report_file)]
    report_file.unlink(missing_ok=True)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode or not report_file.exists():
        raise BenchError(f"ghz failed: {(done.stderr or done.stdout).strip()}")
    return json.loads(report_file.read_text(encoding="utf-8"))
