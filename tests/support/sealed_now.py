"""Seals the ledger of a database, as the service does in the background."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from coupon_service.audit.leaves import leaf_of, row_of, users_of
from coupon_service.audit.seals import begin_chain, extend_chain, make_seal

SELECT_HEAD = "SELECT log_id, number, last_sequence, chain FROM coupon_audit_head FOR UPDATE"
SELECT_ROWS: LiteralString = """
SELECT *, metadata::text AS metadata FROM redemption_audit WHERE sequence > %s ORDER BY sequence
"""
INSERT_SEAL = """
INSERT INTO coupon_audit_seals VALUES (
    %(number)s, %(first)s, %(last)s, %(time)s, %(count)s, %(version)s, %(root)s, %(leaves_hash)s,
    %(chain)s, %(leaves)s)
"""


def seal_ledger(database_url: str, rows_of_seal: int = 20) -> None:
    """Seals all events that are there."""
    with psycopg.connect(database_url) as connection:
        ((log_id, number, last, chain),) = connection.execute(SELECT_HEAD).fetchall()
        chain = chain or begin_chain(log_id)
        with connection.cursor(row_factory=dict_row) as cursor:
            columns = cursor.execute(SELECT_ROWS, [last]).fetchall()
        rows = [row_of(it, it["commitments"]) for it in columns]
        keys = _keys(connection, users_of(rows))
        for start in range(0, len(rows), rows_of_seal):
            chunk = rows[start : start + rows_of_seal]
            leaves = [(it.sequence, leaf_of(it, keys)) for it in chunk]
            seal, packed = make_seal(
                number + 1, last + 1, chunk[-1].sequence, leaves, datetime.now(UTC)
            )
            number, last, chain = seal.number, seal.last_sequence, extend_chain(chain, seal)
            values = {
                "number": number,
                "first": seal.first_sequence,
                "last": last,
                "time": seal.seal_time,
                "count": seal.row_count,
                "version": seal.version,
                "root": seal.root,
                "leaves_hash": seal.leaves_hash,
                "chain": chain,
                "leaves": packed,
            }
            connection.execute(INSERT_SEAL, values)
        connection.execute(
            "UPDATE coupon_audit_head SET number = %s, last_sequence = %s, chain = %s",
            [number, last, chain],
        )


def _keys(connection: psycopg.Connection[Any], users: set[str]) -> dict[str, bytes]:
    for user in users:
        connection.execute(
            "INSERT INTO coupon_user_keys VALUES (%s, %s, now()) ON CONFLICT DO NOTHING",
            [user, secrets.token_bytes(32)],
        )
    return dict(connection.execute("SELECT user_id, key FROM coupon_user_keys").fetchall())
