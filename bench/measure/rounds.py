"""Alternating rounds: each server in turn under the same load, again and again (A B A B …).

Whatever else happens on the machine happens to all of them; what counts is their ratio in a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """One server in one round. Processor times in seconds; `shares`: of each worker, 0 to 1."""

    server: str
    load: Load
    server_cpu_s: float
    postgres_cpu_s: float
    redis_cpu_s: float
    shares: Sequence[float]


def measure(stack: Stack, server: Server, config: dict[str, Any]) -> Measured:
    """Puts the load on the server and looks at what everything else does meanwhile."""
    clock = CpuClock.start(
        {
            "server": lambda: server.workers,
            "postgres": lambda: family(stack.postgres.pid),
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
    """What was measured of one scenario: a list of rounds, each with every server."""

    rounds: Sequence[Sequence[Measured]]
    conservation: str = ""

    def of(self, server: str) -> list[Measured]:
        """One server in all rounds."""
        return [it for measured in self.rounds for it in measured if it.server == server]

    def per_s(self, server: str) -> float:
        """OK answers a second, median."""
        return median(it.load.per_s for it in self.of(server))

    def ratios(self, server: str, rival: str) -> list[float]:
        """How many times as fast as the rival the server was, in each round."""
        return [
            mine.load.per_s / max(other.load.per_s, 1e-9)
            for mine, other in zip(self.of(server), self.of(rival), strict=True)
        ]

    def middle(self, server: str, figure: Callable[[Measured], float]) -> float:
        """The median of a figure of a server."""
        return median(map(figure, self.of(server)))
