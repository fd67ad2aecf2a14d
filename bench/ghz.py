"""Runs ghz on a scenario of bench/scenarios, and reads what it measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.caller import metadata
from bench.stack import ROOT, BenchError

SCENARIOS: Final = ROOT / "bench" / "scenarios"
TIMEOUT_S: Final = 180.0

UNKNOWN: Final = frozenset({"Unavailable", "DeadlineExceeded", "Canceled", "Internal", "Unknown"})
"""After these the call may or may not have had its effect."""


@dataclass(frozen=True, slots=True)
class Load:
    """What ghz measured. Times in milliseconds; `cpu_s`: what ghz itself needed, in seconds."""

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
        """Calls whose effect is not known."""
        return sum(count for status, count in self.statuses.items() if status in UNKNOWN)

    @property
    def per_s(self) -> float:
        """OK answers a second."""
        return self.ok / self.seconds


def find_ghz() -> Path:
    """The program. Raises BenchError."""
    own = ROOT / ".tools" / "ghz"
    found = str(own) if own.exists() else shutil.which("ghz")
    if found is None:
        raise BenchError("ghz is needed: make tools installs it.")
    return Path(found)


def scenario(name: str) -> dict[str, Any]:
    """The configuration in bench/scenarios."""
    return json.loads((SCENARIOS / f"{name}.json").read_text(encoding="utf-8"))


def run_ghz(config: Mapping[str, Any], address: str, folder: Path) -> Load:
    """Puts the load on the server. Raises BenchError."""
    config_file, answer_file = folder / "ghz.json", folder / "ghz-answer.json"
    config_file.write_text(
        json.dumps({**config, "host": address, "metadata": dict(metadata())}), encoding="utf-8"
    )
    command = [str(find_ghz()), "--config", str(config_file)]
    command += ["--format", "json", "--output", str(answer_file)]
    answer_file.unlink(missing_ok=True)
    before = os.times()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    after = os.times()
    if done.returncode or not answer_file.exists():
        raise BenchError(f"ghz failed: {(done.stderr or done.stdout).strip()}")
    answer = json.loads(answer_file.read_text(encoding="utf-8"))
    latency_ms = {
        it["percentage"]: it["latency"] / 1e6 for it in answer["latencyDistribution"] or ()
    }
    return Load(
        calls=answer["count"],
        seconds=answer["total"] / 1e9,
        statuses=answer["statusCodeDistribution"],
        errors=answer["errorDistribution"],
        p50_ms=latency_ms.get(50, 0.0),
        p95_ms=latency_ms.get(95, 0.0),
        p99_ms=latency_ms.get(99, 0.0),
        cpu_s=sum(after[2:4]) - sum(before[2:4]),
    )
