"""What a worker says of itself, and what the workers together answer to `/healthz` and `/readyz`.

A worker shares one byte with the supervisor, so that telling costs nothing and a worker that hangs
holds nobody up.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag


class Readiness(IntFlag):
    """What a worker found when it last looked; nothing at all before its first look."""

    LOOKED = 1
    POSTGRESQL = 2
    SCHEMA = 4
    REDIS = 8
    SERVING = 16


def report(workers: Sequence[Readiness]) -> dict[str, object]:
    """The body of `/readyz`, from the workers that live.

    `status` is SERVING when one of them serves. What one of them reaches is there; who has not
    looked yet is not counted.
    """
    looked = [worker for worker in workers if worker & Readiness.LOOKED]

    def state(flag: Readiness, missing: str) -> str:
        if not looked:
            return "unknown"
        return "ok" if any(worker & flag for worker in looked) else missing

    postgresql = state(Readiness.POSTGRESQL, "unreachable")
    return {
        "status": "SERVING" if is_serving(workers) else "NOT_SERVING",
        "postgresql": postgresql,
        "schema": state(Readiness.SCHEMA, "too old") if postgresql == "ok" else "unknown",
        # Books without locking go on without it.
        "redis": state(Readiness.REDIS, "unreachable"),
        "workers": len(workers),
        "workers_serving": sum(bool(worker & Readiness.SERVING) for worker in workers),
    }


def is_serving(workers: Sequence[Readiness]) -> bool:
    """Whether one of the workers serves."""
    return any(worker & Readiness.SERVING for worker in workers)
