"""The file by which `coupon-service reload` and `restart` find the supervisor.

The supervisor holds a lock on it while it runs, so that a process id that a crash left behind is
never trusted, and two services never share a file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class PidFileError(Exception):
    """The file cannot be used, or no process holds it. The message is one sentence."""


@contextmanager
def holding(path: Path) -> Generator[None]:
    """Write the id of this process into the file, and hold the lock. Raises PidFileError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)  # removing it could hit the file of a new service
    except BlockingIOError:
        raise PidFileError(
            f"Another service runs with {path}. Set COUPON_PID_FILE to another file."
        ) from None
    except OSError as error:
        raise PidFileError(f"{path} cannot be written: {error.strerror}.") from error


def holder(path: Path) -> int:
    """The id of the process that holds the file. Raises PidFileError."""
    try:
        with path.open(encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if number := file.read().strip():
                    return int(number)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise PidFileError(f"{path} cannot be read: {error.strerror}.") from error
    raise PidFileError(f"No service runs with {path}.")
