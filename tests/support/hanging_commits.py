"""COMMITs that hang until a test releases them, as without a synchronous standby."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from support.waiting import until

KEY: Final = "4711"
"""The key of the advisory lock that COMMITs wait for."""

MAY_HANG: Final = f"""
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({KEY});
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON redemption_audit
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hang();
"""
HANGING: Final = (
    f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {KEY} AND NOT granted"
)


class HangingCommits:
    """Transactions that write to the ledger hang in COMMIT until `release`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def wait_for_one(self) -> None:
        """Wait until a COMMIT hangs."""
        until(lambda: self._connection.execute(HANGING).rowcount)

    def release(self) -> None:
        """Release the hanging COMMITs, and wait for them."""
        self._connection.execute(f"SELECT pg_advisory_unlock({KEY})")
        self._connection.execute(f"SELECT pg_advisory_lock({KEY}), pg_advisory_unlock({KEY})")


@contextmanager
def hanging_commits(database_url: str) -> Generator[HangingCommits]:
    """Make the COMMITs of a database hang."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(MAY_HANG)
        connection.execute(f"SELECT pg_advisory_lock({KEY})")
        yield HangingCommits(connection)
        connection.execute("SELECT pg_advisory_unlock_all()")
        connection.execute("DROP TRIGGER hang ON redemption_audit; DROP FUNCTION hang()")
