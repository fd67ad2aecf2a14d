"""The readiness of workers, and the answers to `/healthz` and `/readyz` that follow from it.

A worker reports through one byte of shared memory, so that a report costs nothing and a worker
that hangs delays neither the supervisor nor a probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag


class Readiness(IntFlag):
    """The result of a worker's last probes of what it depends on; 0 before the first."""

    PROBED = 1
    POSTGRESQL = 2
    SCHEMA = 4
    REDIS = 8
    SERVING = 16


def report(workers: Sequence[Readiness]) -> dict[str, object]:
    """The body of `/readyz`, from the readiness of the live workers.

    `status` is SERVING when at least one serves. A dependency is ok when at least one worker
    reaches it. Workers that have not probed yet are left out.
    """
    probed = [worker for worker in workers if worker & Readiness.PROBED]

    def state(flag: Readiness, missing: str) -> str:
        if not probed:
            return "unknown"
        return "ok" if any(worker & flag for worker in probed) else missing

    postgresql = state(Readiness.POSTGRESQL, "unreachable")
    return {
        "status": "SERVING" if is_serving(workers) else "NOT_SERVING",
        "postgresql": postgresql,
        "schema": state(Readiness.SCHEMA, "too old") if postgresql == "ok" else "unknown",
        # Without it the status stays SERVING: books without locking do not need it.
        "redis": state(Readiness.REDIS, "unreachable"),
        "workers": len(workers),
        "workers_serving": sum(bool(worker & Readiness.SERVING) for worker in workers),
    }


def is_serving(workers: Sequence[Readiness]) -> bool:
    """Whether at least one of the workers serves."""
    return any(worker & Readiness.SERVING for worker in workers)
