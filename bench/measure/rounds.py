"""Alternating rounds: each server in turn under the same load (A B A B …).

Other load on the machine affects all servers alike, so their ratio in a round is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from bench.loads.ghz import Load, run_ghz
from bench.measure.cpu import CpuClock, family
from bench.servers.stack import Server, Stack

SERVICE: Final = "service"
NOOP: Final = "noop"
PER_REQUEST: Final = "per_request"


@dataclass(frozen=True, slots=True)
class Measured:
    """One server in one round. CPU times in seconds; `shares`: of each worker, 0 to 1."""

    server: str
    load: Load
    server_cpu_s: float
    postgres_cpu_s: float
    redis_cpu_s: float
    shares: Sequence[float]


def measure(stack: Stack, server: Server, config: dict[str, Any]) -> Measured:
    """Put the load on the server, and measure the CPU time of all processes meanwhile."""
    clock = CpuClock.start(
        {
            "server": lambda: server.workers,
            "postgres": lambda: [it for each in stack.databases for it in family(each.pid)],
            "redis": lambda: family(stack.redis.pid),
        }
    )
    load = run_ghz(config, server.address, stack.folder)
    used_s = clock.since_s()
    server_s = sum(used_s["server"].values())
    return Measured(
        server=server.name,
        load=load,
        server_cpu_s=server_s,
        postgres_cpu_s=sum(used_s["postgres"].values()),
        redis_cpu_s=sum(used_s["redis"].values()),
        shares=[it / server_s for it in used_s["server"].values()] if server_s else [],
    )


@dataclass(frozen=True, slots=True)
class Rounds:
    """The measurements of one scenario: a list of rounds, each with all servers."""

    rounds: Sequence[Sequence[Measured]]
    conservation: str = ""

    def of(self, server: str) -> list[Measured]:
        """The measurements of one server."""
        return [it for measured in self.rounds for it in measured if it.server == server]

    def per_s(self, server: str) -> float:
        """The median of OK answers per second."""
        return median(it.load.per_s for it in self.of(server))

    def ratios(self, server: str, rival: str) -> list[float]:
        """The throughput of the server over that of the rival, in each round."""
        return [
            mine.load.per_s / max(other.load.per_s, 1e-9)
            for mine, other in zip(self.of(server), self.of(rival), strict=True)
        ]
