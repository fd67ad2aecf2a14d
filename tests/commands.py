"""The command line as its users have it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "coupon_service")
TIMEOUT_S = 120


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command: ours, but with these settings and no others."""
    ours = ("COUPON_", "DATABASE_URL", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}


def run(
    folder: Path, *arguments: str | Path, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `coupon-service` with these arguments in a folder, to its end."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=folder,
        env=environment(**variables),
        timeout=TIMEOUT_S,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@contextmanager
def running(
    folder: Path, *arguments: str | Path, **variables: str
) -> Generator[subprocess.Popen[str]]:
    """A `coupon-service` that runs meanwhile; nothing that it started is left afterwards."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(**variables),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        family = descendants(process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT_S)
        psutil.wait_procs(family, timeout=TIMEOUT_S)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes that it has started, and those that they have started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
