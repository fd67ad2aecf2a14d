"""`coupon-service serve` as a process of its own, and its metrics port, log and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil
from support.secret_scan import keep_secret
from support.service import ERASURE_SECRET, LOCK_TOKEN_SECRET
from support.waiting import until

from coupon_service.embedded.machine import free_port

PATIENCE_S = 60

T = TypeVar("T")


def environment_of(database_url: str, redis_url: str) -> dict[str, str]:
    """Settings of a service with two workers, on free ports."""
    keep_secret(database_url, redis_url, LOCK_TOKEN_SECRET, ERASURE_SECRET)
    # Of those that no client is given while the service starts.
    ports = set[int]()
    while len(ports) < 2:
        ports.add(free_port())
    grpc_port, metrics_port = ports
    return {
        **os.environ,
        "COUPON_DATABASE_URL": database_url,
        "COUPON_REDIS_URL": redis_url,
        "COUPON_LOCK_TOKEN_SECRET": LOCK_TOKEN_SECRET,
        "COUPON_ERASURE_SECRET": ERASURE_SECRET,
        "COUPON_WORKERS": "2",
        "COUPON_DRAIN_GRACE_MS": "0",
        "COUPON_PORT": str(grpc_port),
        "COUPON_METRICS_PORT": str(metrics_port),
    }


@contextmanager
def serving(
    environment: dict[str, str], folder: Path, *, ready: bool = True
) -> Generator[subprocess.Popen[bytes]]:
    """A service that serves, or at least answers `/readyz`. Its log is `folder / "log"`."""
    command = [sys.executable, "-m", "coupon_service", "serve"]
    with (folder / "log").open("ab") as log:
        service = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            until(lambda: is_ready(environment) if ready else readyz(environment))
            yield service
        finally:
            service.terminate()
            service.wait(PATIENCE_S)


def fetch(environment: dict[str, str], path: str) -> str:
    """The answer of the metrics port; empty while there is none."""
    try:
        with urlopen(_url(environment, path), timeout=5) as answer:  # noqa: S310
            return answer.read().decode()
    except (URLError, OSError):
        return ""


def readyz(environment: dict[str, str]) -> dict[str, Any]:
    """The body of /readyz, whatever its status; empty while there is no answer."""
    try:
        with urlopen(_url(environment, "readyz"), timeout=5) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        with error:
            return json.load(error)
    except (URLError, OSError):
        return {}


def is_ready(environment: dict[str, str]) -> bool:
    """Whether all of its workers serve."""
    return readyz(environment).get("workers_serving") == int(environment["COUPON_WORKERS"])


def events_in(log: Path, event: str) -> list[dict[str, Any]]:
    """The complete lines of a log with this event."""
    complete, _, _ = log.read_bytes().rpartition(b"\n")
    lines = (json.loads(line) for line in complete.splitlines() if line.startswith(b"{"))
    return [line for line in lines if line["event"] == event]


def workers_of(service: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Its live worker processes: the children of the fork server."""
    fork_servers = (
        child
        for child in psutil.Process(service.pid).children()
        if "multiprocessing.forkserver" in " ".join(_unless_ended(child.cmdline, []))
    )
    workers = [worker for fork_server in fork_servers for worker in fork_server.children()]
    ended = psutil.STATUS_ZOMBIE
    return [worker for worker in workers if _unless_ended(worker.status, ended) != ended]


def _unless_ended(read: Callable[[], T], default: T) -> T:
    """A property of a process, or `default` when the process has ended."""
    try:
        return read()
    except psutil.NoSuchProcess:
        return default


def _url(environment: dict[str, str], path: str) -> str:
    return f"http://127.0.0.1:{environment['COUPON_METRICS_PORT']}/{path}"
