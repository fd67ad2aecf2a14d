"""PgBouncer in transaction mode: what is installed, or the program COUPON_TEST_PGBOUNCER."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.waiting import until

from coupon_service.embedded.machine import HOST, free_port, owner_prefix

PREPARING_MIN = (1, 21)

PROGRAM = os.environ.get("COUPON_TEST_PGBOUNCER") or shutil.which(
    "pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
)


def _version() -> tuple[int, ...]:
    if PROGRAM is None:
        return (0,)
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, check=True).stdout.decode()
    return tuple(map(int, said.split()[1].split(".")))


VERSION = _version()

needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed: apt-get install pgbouncer"
)

needs_preparing_pgbouncer = pytest.mark.skipif(
    VERSION < PREPARING_MIN,
    reason="PgBouncer 1.21 or newer, which has prepared statements, is not installed: apt-get"
    " install pgbouncer on Debian 13, or COUPON_TEST_PGBOUNCER=<its program>",
)


class Pooler:
    """A PgBouncer that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def url(self, database_url: str) -> str:
        """The URL of the same database and role, through the pooler."""
        userinfo, _, _ = urlsplit(database_url).netloc.rpartition("@")
        return urlsplit(database_url)._replace(netloc=f"{userinfo}@{HOST}:{self._port}").geturl()


@contextmanager
def pgbouncer(folder: Path, *urls: str, **settings: str) -> Generator[Pooler]:
    """A pooler of the server and the roles of these URLs. `settings`: of PgBouncer."""
    assert PROGRAM is not None
    server, port = urlsplit(urls[0]), free_port()
    users = {it.username: it.password for it in map(urlsplit, urls)}
    (folder / "users.txt").write_text("".join(f'"{it}" "{users[it]}"\n' for it in users))
    values = {
        "listen_addr": HOST,
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": str(folder / "users.txt"),
        "pool_mode": "transaction",
        "default_pool_size": "8",
        **settings,
    }
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={server.hostname} port={server.port}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in values.items())
    )
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [*owner_prefix(), PROGRAM, "--quiet", str(configuration)], stdout=log, stderr=log
        )
    try:
        until(lambda: _listens(port), why_not=(folder / "pgbouncer.log").read_text)
        yield Pooler(port)
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex((HOST, port)) == 0
