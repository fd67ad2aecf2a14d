"""The readiness of workers, and the answers to `/healthz` and `/readyz` that follow from it.

A worker reports through a number in shared memory, so that a report costs nothing and a worker
that hangs delays neither the supervisor nor a probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntFlag
from types import MappingProxyType
from typing import Final


class Readiness(IntFlag):
    """The result of a worker's last probes of what it depends on; 0 before the first.

    POSTGRESQL: it answers, even if it cannot be used for one of POSTGRESQL_PROBLEMS.
    """

    PROBED = 1
    POSTGRESQL = 2
    SCHEMA = 4
    REDIS = 8
    SERVING = 16
    STARTING_UP = 32
    READ_ONLY = 64
    VERSION_TOO_OLD = 128
    WRONG_ENCODING = 256
    NO_PRIVILEGE = 512
    UNSAFE_SETTINGS = 1024

    # What the read replica is not, if there is one; the primary answers in its place.
    REPLICA_AWAY = 2048
    REPLICA_BEHIND = 4096

    # A shard is elsewhere than where the settings have it.
    MOVED = 8192

    # What a Redis that answers is, or does not do. REDIS is not set beside one of the first.
    REDIS_CLUSTER_NODE = 1 << 16
    REDIS_SENTINEL = 1 << 17
    REDIS_REPLICA = 1 << 18
    REDIS_NO_SCRIPTS = 1 << 19
    REDIS_NO_PRIVILEGE = 1 << 20
    REDIS_NOT_WRITABLE = 1 << 21
    REDIS_REFUSES = 1 << 22
    REDIS_MAY_EVICT = 1 << 23
    REDIS_NODE_DOWN = 1 << 24
    REDIS_CLUSTER_DOWN = 1 << 25
    REDIS_FULL_COVERAGE = 1 << 26


POSTGRESQL_PROBLEMS: Final = (
    Readiness.STARTING_UP,
    Readiness.READ_ONLY,
    Readiness.VERSION_TOO_OLD,
    Readiness.WRONG_ENCODING,
    Readiness.NO_PRIVILEGE,
    Readiness.UNSAFE_SETTINGS,
)
"""Why PostgreSQL cannot be used although it is there, in the order in which they are told."""

POSTGRESQL_WARNINGS: Final = MappingProxyType(
    {
        Readiness.REPLICA_AWAY: "read replica unreachable",
        Readiness.REPLICA_BEHIND: "read replica behind",
    }
)
"""What is not as it should be while PostgreSQL can be used."""

REDIS_PROBLEMS: Final = MappingProxyType(
    {
        Readiness.REDIS_CLUSTER_NODE: "cluster node",
        Readiness.REDIS_SENTINEL: "sentinel",
        Readiness.REDIS_REPLICA: "replica",
        Readiness.REDIS_NO_SCRIPTS: "no scripts",
        Readiness.REDIS_NO_PRIVILEGE: "no privilege",
        Readiness.REDIS_NOT_WRITABLE: "not writable",
        Readiness.REDIS_CLUSTER_DOWN: "cluster down",
        Readiness.REDIS_NODE_DOWN: "partly unreachable",
        Readiness.REDIS_REFUSES: "refuses",
    }
)
"""Why Redis cannot be used although it answers, in the order in which they are told."""

REDIS_WARNINGS: Final = MappingProxyType(
    {
        Readiness.REDIS_MAY_EVICT: "may evict locks",
        Readiness.REDIS_FULL_COVERAGE: "requires full coverage",
    }
)
"""What is not as it should be with a Redis that can be used."""


def report(
    workers: Sequence[Readiness], shards: Sequence[Sequence[Readiness]] = ()
) -> dict[str, object]:
    """The body of `/readyz`, from the readiness of the live workers; `shards`: what each of them
    says of each shard, where there are several.

    `status` is SERVING when at least one serves. A dependency is ok when at least one worker
    reaches it. Workers that have not probed yet are left out.
    """
    probed = [worker for worker in workers if worker & Readiness.PROBED]

    def state(flag: Readiness, missing: str) -> str:
        if not probed:
            return "unknown"
        return "ok" if any(worker & flag for worker in probed) else missing

    postgresql = _postgresql(probed)
    of_shards = {
        f"coupon_{number:02}": _shard(found)
        for number, found in enumerate(zip(*shards, strict=True))
    }
    return {
        "status": "SERVING" if is_serving(workers) else "NOT_SERVING",
        "postgresql": postgresql,
        "postgresql_warnings": _warnings(probed, POSTGRESQL_WARNINGS),
        "schema": state(Readiness.SCHEMA, "too old") if postgresql == "ok" else "unknown",
        # Without it the status stays SERVING: books without locking do not need it.
        "redis": state(Readiness.REDIS, _redis_problem(probed)),
        "redis_warnings": _warnings(probed, REDIS_WARNINGS),
        **({"shards": of_shards} if of_shards else {}),
        "workers": len(workers),
        "workers_serving": sum(bool(worker & Readiness.SERVING) for worker in workers),
    }


def _warnings(probed: Sequence[Readiness], texts: Mapping[Readiness, str]) -> list[str]:
    """Those that any of the workers has."""
    return [text for flag, text in texts.items() if any(it & flag for it in probed)]


def _shard(found: Sequence[Readiness]) -> str:
    """What the worker that gets furthest with the shard says."""
    if any(it & Readiness.SERVING for it in found):
        return "ok, moved" if any(it & Readiness.MOVED for it in found) else "ok"
    postgresql = _postgresql(found)
    return "schema missing, too old or of other shards" if postgresql == "ok" else postgresql


def _postgresql(probed: Sequence[Readiness]) -> str:
    """What the worker that gets furthest with it says."""
    if not probed:
        return "unknown"
    if any(worker & Readiness.POSTGRESQL and not problems_of(worker) for worker in probed):
        return "ok"
    found = [problem for worker in probed for problem in problems_of(worker)]
    return _name(found[0]) if found else "unreachable"


def problems_of(worker: Readiness) -> tuple[Readiness, ...]:
    """Why the worker cannot use PostgreSQL although it is there."""
    return tuple(problem for problem in POSTGRESQL_PROBLEMS if problem & worker)


def _name(problem: Readiness) -> str:
    return (problem.name or "").lower().replace("_", " ").replace("read only", "read-only")


def _redis_problem(probed: Sequence[Readiness]) -> str:
    for flag, text in REDIS_PROBLEMS.items():
        if any(worker & flag for worker in probed):
            return text
    return "unreachable"


def is_serving(workers: Sequence[Readiness]) -> bool:
    """Whether at least one of the workers serves."""
    return any(worker & Readiness.SERVING for worker in workers)
