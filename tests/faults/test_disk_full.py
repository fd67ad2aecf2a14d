"""The disk of PostgreSQL is full: writes are refused until there is space.

PostgreSQL runs on a small file system of its own, which only root can mount.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from faults.checks import assert_outcomes
from faults.load import Load
from faults.stack import DEADLINE_S, SETTINGS, connects
from faults.survival import survive
from support.calls import tried
from support.proof_sizes import times
from support.service import Api, ServerThread, settings_for
from support.waiting import until

from coupon_service.embedded import EmbeddedError, EmbeddedPostgres
from coupon_service.store import migrations

SIZE_BYTES = 256 << 20
WAL = {"min_wal_size": "32MB", "max_wal_size": "64MB", "wal_init_zero": "on"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=755", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(postgres: EmbeddedPostgres, folder: Path) -> Generator[None]:
    """Another file fills the disk."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    yield
    filler.unlink()
    with suppress(EmbeddedError):
        postgres.start()  # it has ended if it could not even recover
    until(lambda: connects(postgres.url))


def test_full_disk_refuses_writes_without_effect(small_disk: Path, redis_url: str) -> None:
    with EmbeddedPostgres(small_disk / "postgres", durable=False, settings=WAL) as postgres:
        migrations.apply(postgres.url)
        settings = settings_for(postgres.url, redis_url, **SETTINGS)
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            until(lambda: tried(api.draft) == "OK")
            with Load(api, server.address, 1, DEADLINE_S) as load:
                for _ in range(times(1, 5)):
                    survival = survive(
                        load,
                        full(postgres, small_disk),
                        2,
                        functools.partial(psycopg.connect, postgres.url),
                    )
                    assert_outcomes(survival.seen, frozenset({"DATABASE_UNAVAILABLE"}))
                    assert "DATABASE_UNAVAILABLE" in {it.name for it in survival.seen}
