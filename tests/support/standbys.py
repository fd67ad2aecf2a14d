"""A primary and a standby of PostgreSQL, for failovers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.postgres_roles import execute
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.embedded.machine import HOST, owner
from coupon_service.store import migrations

REPLICATION = {"wal_level": "replica", "max_wal_senders": "4", "wal_receiver_timeout": "2s"}


class Standby(EmbeddedPostgres):
    """A server that follows another one until it is promoted."""

    def _answers(self) -> bool:
        pid_file = self.data / self.pid_file
        status = pid_file.read_text().splitlines()[7:8] if pid_file.exists() else []
        return [it.strip() for it in status] == ["standby"] or super()._answers()

    def promote(self) -> None:
        """Makes it a primary; returns when it is one."""
        execute(self.url, "SELECT pg_promote()")


@contextmanager
def replicated(folder: Path) -> Generator[tuple[EmbeddedPostgres, Standby]]:
    """A migrated primary and its synchronous standby."""
    primary = EmbeddedPostgres(folder / "primary", durable=False, settings=REPLICATION)
    with primary:
        migrations.apply(primary.url)
        primary.stop()
        _copy(folder / "primary", folder / "standby")
        primary.start()
        password = urlsplit(primary.url).password
        source = f"host={HOST} port={primary.port} user={primary.user} password={password}"
        settings = {**REPLICATION, "primary_conninfo": f"{source} application_name=standby"}
        with Standby(folder / "standby", durable=False, settings=settings) as standby:
            execute(
                primary.url,
                "ALTER SYSTEM SET synchronous_standby_names = 'standby'",
                "SELECT pg_reload_conf()",
            )
            until(lambda: _is_synchronous(primary.url))
            yield primary, standby


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("lock", "log"))
    (target / "data" / "standby.signal").touch()
    for path in (target / "data", *(target / "data").rglob("*")):
        os.chown(path, *owner())


def _is_synchronous(url: str) -> bool:
    import psycopg

    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
        return found == [("sync",)]
