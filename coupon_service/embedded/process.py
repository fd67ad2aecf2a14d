"""Base class of the embedded servers: one server process and its folder.

The folder holds everything of the server:

- ``data/``: the server's files;
- ``password``: generated once. Any user of the machine can connect over loopback, and an
  authenticated client of either server can write files as its user, so a password is required;
- ``log``: the server's output since its last start;
- ``lock``: held by the process that started the server, so that only one process uses a folder.

The server never outlives the process that started it. That process calls ``stop()`` on a clean
exit. After a crash a watchdog stops the server: a shell that reads from a pipe whose other end the
process held. The next start on the folder stops whatever this leaves behind.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, ClassVar, Self

from coupon_service.embedded.machine import (
    EmbeddedError,
    environment,
    free_port,
    owner,
    owner_prefix,
)

if TYPE_CHECKING:
    from psutil import Process

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.02
START_ATTEMPTS_MAX = 5

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class PortInUseError(EmbeddedError):
    """Another process listens on the port."""


class EmbeddedServer(ABC):
    """One server process and its folder."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    pid_file: ClassVar[str]
    """Written by the server into its data folder, and removed on a clean shutdown."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        durable: bool = True,
        settings: Mapping[str, str] = NO_SETTINGS,
    ) -> None:
        """Has no effect before ``start()``.

        ``port`` 0 takes a free port, and keeps it when this object starts the server again.
        ``durable`` False is for data that need not survive a crash of the machine. ``settings``
        are settings of the server, and override those of the class.
        """
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = port
        self._durable = durable
        self._settings = settings
        self._password = ""
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The connection URL, password included. Known after ``start()``."""

    @abstractmethod
    def _create(self, data: Path, password: Path) -> None:
        """Initialise the empty folder ``data`` for a first start."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _input(self) -> str:
        """The standard input of the server at its start."""

    @abstractmethod
    def _answers(self) -> bool: ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the server (of PostgreSQL: the postmaster).

        Raises EmbeddedError when it is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedError(f"{self.name} in {self.folder} is not running.")
        return self._process.pid

    def start(self) -> None:
        """Start the server on its folder, which is created when missing; return when it answers.

        Has no effect while it is running. Stops processes that a crash left running on the folder.
        Raises EmbeddedError.
        """
        if self._process is not None and self._process.poll() is None:
            return
        try:
            self._lock_folder()
            self._stop_leftovers()
            self._open_data()
            self._launch()
        except OSError as error:
            self.stop()
            reason = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            raise EmbeddedError(f"{self.name} cannot use {self.folder} ({reason}).") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down and unlock the folder. Has no effect when it is stopped."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._dismiss_watchdog()
        self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """SIGKILL all processes of the server and wait for their end.

        The folder stays locked; ``start()`` restarts the server on the same port.
        """
        family = self._freeze()
        for process in family:
            _send(process, signal.SIGKILL)
        self._dismiss_watchdog()
        if self._process is not None:
            self._process.wait()
        _await_end(family)

    def pause(self) -> None:
        """SIGSTOP all processes of the server. Its connections stay open."""
        self._watch(*(process.pid for process in self._freeze()))

    def resume(self) -> None:
        """SIGCONT all processes of the server, after ``pause()``."""
        for process in reversed(_family(self.pid)):
            _send(process, signal.SIGCONT)

    def _freeze(self) -> list[Process]:
        # The parent first, so that it forks no further child while they are listed.
        os.kill(self.pid, signal.SIGSTOP)
        family = _family(self.pid)
        for process in family:
            _send(process, signal.SIGSTOP)
        return family

    def _lock_folder(self) -> None:
        if self._lock is not None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                holder = lock.read()
            raise EmbeddedError(
                f"{self.name} in {self.folder} is in use by process {holder}: "
                "stop that process, or choose another data folder."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _stop_leftovers(self) -> None:
        """Stop processes that still run on the data although the folder was not locked."""
        pid_file = self.data / self.pid_file
        try:
            main = pid_file.read_text(encoding="utf-8").split()[:1]
        except FileNotFoundError:
            return
        leftovers = _working_in(self.data)
        for process in leftovers:
            _send(process, signal.SIGCONT)
            if str(process.pid) in main:
                _send(process, self.stop_signal)
        for process in _await_end(leftovers):
            _send(process, signal.SIGKILL)
        if _await_end(leftovers):
            raise EmbeddedError(f"An old {self.name} runs in {self.folder} and cannot be stopped.")
        # Its process id may be reused by now, and PostgreSQL would refuse to start beside it.
        pid_file.unlink(missing_ok=True)

    def _open_data(self) -> None:
        password = self.folder / "password"
        if not self.data.exists():
            new = self.folder / "data.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            os.chown(new, *owner())
            password.touch(mode=0o600)
            password.write_text(secrets.token_urlsafe(24), encoding="ascii")
            self._create(new, password)
            new.rename(self.data)
        if self.data.stat().st_uid != owner()[0]:
            raise EmbeddedError(
                f"The {self.name} data in {self.folder} was made by another user: "
                "start as that user, or choose another data folder."
            )
        self._password = password.read_text(encoding="ascii")

    def _launch(self) -> None:
        attempts = 1 if self.port else START_ATTEMPTS_MAX
        for attempt in range(1, attempts + 1):
            if attempts > 1:
                self.port = free_port()
            try:
                self._launch_once()
            except PortInUseError:
                if attempt == attempts:
                    raise
            else:
                return

    def _launch_once(self) -> None:
        with self.log.open("wb") as log:
            self._process = process = subprocess.Popen(
                [*owner_prefix(), *self._command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.data,
                env=environment(),
                start_new_session=True,  # Ctrl-C goes to the process that started it
            )
        self._watch(process.pid)
        if process.stdin is not None:
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(self._input().encode())
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if process.poll() is not None:
                raise self._exit_error()
            if time.monotonic() > deadline_s:
                raise EmbeddedError(
                    f"{self.name} has not answered for {START_TIMEOUT_S:.0f} s: see {self.log}."
                )
            time.sleep(POLL_INTERVAL_S)

    def _exit_error(self) -> EmbeddedError:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        if "Address already in use" in text:
            return PortInUseError(f"{self.name} cannot listen on port {self.port}: it is in use.")
        return EmbeddedError(f"{self.name} did not start ({complaint(text)}): see {self.log}.")

    def _watch(self, pid: int, *children: int) -> None:
        """Start a watchdog, which resumes and stops the server when this process ends."""
        self._dismiss_watchdog()
        script = f'read -r _ || {{ kill -{int(self.stop_signal)} "$1"; kill -CONT "$@"; }}'
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", script, "watchdog", str(pid), *map(str, children)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.communicate(b"\n")
            self._watchdog = None


def complaint(output: str) -> str:
    """The line of a failed program's output that explains the failure best."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "FATAL:" in line]
    return (errors[:1] or lines[-1:] or ["no output"])[0]


# psutil is part of the extra, so it is imported only where a server is started.


def _family(pid: int) -> list[Process]:
    import psutil

    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _working_in(folder: Path) -> list[Process]:
    import psutil

    here = str(folder.resolve())
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == here]


def _send(process: Process, number: signal.Signals) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _await_end(processes: list[Process]) -> list[Process]:
    """Wait until the processes have ended; returns those that still run after STOP_TIMEOUT_S."""
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while alive := [process for process in processes if _is_alive(process)]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(POLL_INTERVAL_S)
    return alive


def _is_alive(process: Process) -> bool:
    import psutil

    try:
        # An ended process stays a zombie until its new parent, process 1, reaps it.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
