"""The command line, run by tests."""

from __future__ import annotations

import io
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

ROOT = Path(__file__).parents[2]
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
    """Run `coupon-service` with these arguments in a folder, to its end, within this process."""
    command = ["coupon-service", *map(str, arguments)]
    said, complained = io.StringIO(), io.StringIO()
    exit_code = 0
    with (
        tempfile.TemporaryFile("w+b") as given,
        mock.patch.dict(os.environ, environment(**variables), clear=True),
        mock.patch.object(sys, "argv", command),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(given, encoding="utf-8")),
        redirect_stdout(said),
        redirect_stderr(complained),
        chdir(folder),
    ):
        given.write(stdin)
        given.seek(0)
        try:
            cli.main()
        except SystemExit as end:
            # What the interpreter makes of it.
            if isinstance(end.code, str):
                complained.write(f"{end.code}\n")
            exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(command, exit_code, said.getvalue(), complained.getvalue())


def run_apart(
    folder: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own: for what takes hold of signals, or starts processes."""
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
