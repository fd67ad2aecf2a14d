"""PostgreSQL as the system has it installed: other versions than the embedded one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.embedded.machine import HOST, environment, owner_prefix

PROGRAMS: Final = sorted(
    (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
    key=lambda path: int(path.parent.name),
)
"""Of each version, the oldest first."""

needs_installed_postgres = pytest.mark.skipif(
    not PROGRAMS, reason="PostgreSQL is not installed: apt-get install postgresql"
)


class InstalledPostgres(EmbeddedPostgres):
    """The oldest PostgreSQL that is installed."""

    def _create(self, data: Path, password: Path) -> None:
        subprocess.run(
            [
                *owner_prefix(),
                PROGRAMS[0] / "initdb",
                f"--pgdata={data}",
                f"--username={self.user}",
                f"--pwfile={password}",
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            cwd=self.folder,
            env=environment(),
            check=True,
            capture_output=True,
        )

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "300",
            **self._settings,
        }
        return [
            str(PROGRAMS[0] / "postgres"),
            *("-D", str(self.data)),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ]
