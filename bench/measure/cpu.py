"""CPU time of groups of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psutil

Family = Callable[[], Iterable[psutil.Process]]
"""Returns the current processes of a group."""


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@dataclass(frozen=True, slots=True)
class CpuClock:
    """CPU time of each process of several groups at one moment, in seconds."""

    parts: Mapping[str, Family]
    used_s: Mapping[str, Mapping[int, float]]

    @classmethod
    def start(cls, parts: Mapping[str, Family]) -> CpuClock:
        """Start measuring now."""
        return cls(parts, {part: _used_s(find) for part, find in parts.items()})

    def since_s(self) -> dict[str, dict[int, float]]:
        """The CPU time of each process of each group since the start."""
        return {
            part: {
                pid: now_s - self.used_s[part].get(pid, 0.0) for pid, now_s in _used_s(find).items()
            }
            for part, find in self.parts.items()
        }


def _used_s(find: Family) -> dict[int, float]:
    used: dict[int, float] = {}
    for process in find():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used[process.pid] = times.user + times.system
    return used
