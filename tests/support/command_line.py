"""Runs of the command line, in this process or in one of their own."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import psutil

from coupon_service import cli
from coupon_service.cli import progress

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "coupon_service")
TIMEOUT_S = 120


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command: that of the tests, with these settings and no others."""
    settings = ("COUPON_", "DATABASE_URL", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}


def run(
    folder: Path, *arguments: str | Path, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `coupon-service` with these arguments in a folder, within this process.

    It reports no progress, however long it takes.
    """
    command = ["coupon-service", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    exit_code = 0
    with (
        tempfile.TemporaryFile("w+b") as given,
        mock.patch.dict(os.environ, environment(**variables), clear=True),
        mock.patch.object(sys, "argv", command),
        mock.patch.object(progress, "LINES_EVERY_S", math.inf),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(given, encoding="utf-8")),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        chdir(folder),
    ):
        given.write(stdin)
        given.seek(0)
        try:
            cli.main()
        except SystemExit as end:
            # As the interpreter handles it.
            if isinstance(end.code, str):
                stderr.write(f"{end.code}\n")
            exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(command, exit_code, stdout.getvalue(), stderr.getvalue())


def run_apart(
    folder: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, for commands that handle signals or start processes."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(**variables),
        timeout=TIMEOUT_S,
        check=False,
    )


@contextmanager
def running(
    folder: Path, *arguments: str | Path, **variables: str
) -> Generator[subprocess.Popen[str]]:
    """A running `coupon-service`. On exit it and its descendants are stopped."""
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
    """All processes that it has started, directly or not."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
