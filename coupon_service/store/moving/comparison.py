"""Whether both databases have the same rows: all of them, or those of the ledger from a number on.

Rows are hashed as text, and the hashes are added up, so that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, LiteralString, TypeAlias

from psycopg import sql

from coupon_service.store.moving.sides import CannotMoveError, Connection, Names

Digest: TypeAlias = tuple[int, int]
"""How many rows, and the sum of their hashes."""

DIGEST: Final = """
SELECT count(*), coalesce(sum(('x' || left(md5(t::text), 15))::bit(60)::bigint), 0)::text
FROM {table} AS t {where}
"""

SINCE: Final[Mapping[str, LiteralString]] = {
    "redemption_audit": "sequence > {since}",
    "coupon_audit_seals": "last_sequence > {since}",
    "coupon_audit_head": "true",
}
"""The tables that are compared in the pause, and which of their rows: the ledger and its seals,
since the comparison of all rows."""


class RowsDifferError(CannotMoveError):
    """A table has other rows where it was copied to."""


def digest(connection: Connection, names: Names, table: str, since: int | None = None) -> Digest:
    """Of all rows of the table, or those of SINCE."""
    where = sql.SQL("")
    if since is not None:
        where = sql.SQL("WHERE ") + sql.SQL(SINCE[table]).format(since=sql.Literal(since))
    query = sql.SQL(DIGEST).format(table=names.table(table), where=where)
    row = connection.execute(query).fetchone()
    return (row[0], int(row[1])) if row else (0, 0)


def compare(
    source: Connection, target: Connection, names: Names, table: str, since: int | None = None
) -> int:
    """The number of rows of the table. Raises RowsDifferError."""
    with ThreadPoolExecutor(2) as threads:
        sides = [threads.submit(digest, it, names, table, since) for it in (source, target)]
        (rows, here), (copied, there) = (it.result() for it in sides)
    if rows != copied:
        raise RowsDifferError(f"{table} has {rows:,} rows, and {copied:,} where it was copied to.")
    if here != there:
        raise RowsDifferError(f"The rows of {table} differ where it was copied to.")
    return rows


SELECT_COLUMNS: Final[LiteralString] = """
SELECT relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
ORDER BY relname, attname
"""

SELECT_INDEXES: Final[LiteralString] = """
SELECT pg_get_indexdef(indexrelid)
FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
WHERE relnamespace = to_regnamespace(%s) AND indisvalid
ORDER BY 1
"""


def refuse_other_structure(source: Connection, target: Connection, names: Names) -> None:
    """Raises CannotMoveError when the tables have other columns or indexes there."""
    of: dict[str, LiteralString] = {"columns": SELECT_COLUMNS, "indexes": SELECT_INDEXES}
    for what, statement in of.items():
        here, there = (
            {*map(str, it.execute(statement, [names.schema]).fetchall())} for it in (source, target)
        )
        if here != there:
            raise CannotMoveError(
                f"The tables have other {what} than those of this version:"
                f" {', '.join(sorted(here ^ there)[:3])}."
            )
