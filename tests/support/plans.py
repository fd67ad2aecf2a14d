"""The plans of statements, as the sessions of the service have them."""

from __future__ import annotations

import re

import psycopg

from coupon_service.store.sessions import PLANNING, options


def plan_of(database_url: str, statement: str) -> str:
    """The plan of a statement with parameters as psycopg marks them, or numbered, for any values.

    EXPLAIN (GENERIC_PLAN) would say the same, from PostgreSQL 16 on.
    """
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match[1] or str(len(names))
        return f"${names.setdefault(name, len(names) + 1)}"

    numbered = re.sub(r"%(?:\((\w+)\))?s", number, statement)
    count = max([0, *map(int, re.findall(r"\$(\d+)", numbered))])
    values = f"({', '.join(['NULL'] * count)})" if count else ""
    with psycopg.connect(database_url, options=options(database_url, PLANNING)) as connection:
        connection.execute(f"PREPARE explained AS {numbered}".encode())
        rows = connection.execute(f"EXPLAIN EXECUTE explained{values}".encode()).fetchall()
    return "\n".join(line for (line,) in rows)
