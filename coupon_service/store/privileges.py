"""The least that the role of the service needs. The ledger is only read and added to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, LiteralString

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from coupon_service.errors import DatabaseUnavailable
from coupon_service.store.sessions import ONLY_SHARD, ShardPlace, options, sentence_of, url_parts

_READ: Final[tuple[LiteralString, ...]] = ("SELECT",)
_ADD: Final[tuple[LiteralString, ...]] = ("SELECT", "INSERT")
_WRITE: Final[tuple[LiteralString, ...]] = ("SELECT", "INSERT", "UPDATE")

PRIVILEGES: Final[Mapping[str, tuple[LiteralString, ...]]] = MappingProxyType(
    {
        "_yoyo_migration": _READ,
        "coupon_adjustments": _WRITE,
        "coupon_archived_assignments": _READ,
        "coupon_archived_codes": _READ,
        "coupon_archived_events": _READ,
        "coupon_archived_orders": _READ,
        "coupon_archived_ranges": _READ,
        "coupon_assignments": _WRITE,
        "coupon_audit_archives": _READ,
        "coupon_audit_head": ("SELECT", "UPDATE"),
        "coupon_audit_seals": _ADD,
        "coupon_book_counters": _WRITE,
        "coupon_book_levels": _WRITE,
        "coupon_book_totals": _WRITE,
        "coupon_book_terms": _ADD,
        "coupon_books": _WRITE,
        "coupon_code_spellings": (*_ADD, "DELETE"),
        "coupon_code_terms": (*_ADD, "DELETE"),
        "coupon_codes": (*_WRITE, "DELETE"),
        "coupon_erased_users": _WRITE,
        "coupon_finished_steps": _READ,
        "coupon_generations": (*_WRITE, "DELETE"),
        "coupon_order_books": _WRITE,
        "coupon_orders": (*_WRITE, "DELETE"),
        "coupon_past_codes": (*_WRITE, "DELETE"),
        "coupon_period_counters": (*_WRITE, "DELETE"),
        "coupon_refusals": (*_ADD, "DELETE"),
        "coupon_turns": _WRITE,
        "coupon_user_counters": _WRITE,
        "coupon_user_keys": _ADD,
        "redemption_audit": _ADD,
        "lock_fences": ("USAGE",),
        "redemption_audit_numbers": ("USAGE",),
    }
)
"""By relation, tables first and then the sequence."""

FUNCTIONS: Final[tuple[LiteralString, ...]] = (
    "coupon_erase_user(text, text[], uuid[], smallint[], text[], text[], uuid[], bytea[])",
    "coupon_erase_archived_orders(text, text[], uuid[], text[])",
)
"""Which change, with the rights of who owns the tables, what the role may not change itself."""


SELECT_SCHEMA: Final = """
SELECT current_database(), nspname
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = to_regclass('_yoyo_migration')
"""


def grant(
    database_url: str,
    role: str,
    parameters: Mapping[str, str],
    *,
    shard: ShardPlace = ONLY_SHARD,
    execute: bool = False,
) -> list[str]:
    """The statements that give the role what it needs, and these parameters in its sessions.

    `shard`: in whose schema. `execute`: executes them, in one transaction. Raises
    DatabaseUnavailable.
    """
    parts = {
        **url_parts(database_url),
        "client_encoding": "UTF8",
        "options": options(database_url, shard.parameters),
    }
    try:
        with psycopg.connect(make_conninfo(**parts)) as connection:
            found = connection.execute(SELECT_SCHEMA).fetchone()
            if found is None:
                raise DatabaseUnavailable("It has no schema yet: run coupon-service migrate up.")
            database, schema = found
            needed = list(statements(database, schema, role, parameters))
            if execute:
                for statement in needed:
                    connection.execute(statement)
            return [statement.as_string(connection) for statement in needed]
    except (errors.UndefinedTable, errors.UndefinedFunction) as error:
        raise DatabaseUnavailable(
            "It has not all of the schema: run coupon-service migrate up."
        ) from error
    except psycopg.Error as error:
        raise DatabaseUnavailable(sentence_of(error)) from error


def statements(
    database: str, schema: str, role: str, parameters: Mapping[str, str]
) -> Iterator[sql.Composed]:
    names = {
        "database": sql.Identifier(database),
        "schema": sql.Identifier(schema),
        "role": sql.Identifier(role),
        "ledger": sql.Identifier(schema, "redemption_audit"),
    }
    yield sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}").format(**names)
    yield sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names)
    for relation, privileges in PRIVILEGES.items():
        yield sql.SQL("GRANT {privileges} ON {kind}{relation} TO {role}").format(
            privileges=sql.SQL(", ").join(map(sql.SQL, privileges)),
            kind=sql.SQL("SEQUENCE " if privileges == ("USAGE",) else ""),
            relation=sql.Identifier(schema, relation),
            **names,
        )
    for function in FUNCTIONS:
        yield sql.SQL("GRANT EXECUTE ON FUNCTION {schema}.{function} TO {role}").format(
            function=sql.SQL(function), **names
        )
    yield sql.SQL("REVOKE UPDATE, DELETE, TRUNCATE ON {ledger} FROM {role}").format(**names)
    for name, value in parameters.items():
        yield sql.SQL("ALTER ROLE {role} IN DATABASE {database} SET {name} = {value}").format(
            name=sql.SQL(".").join(map(sql.Identifier, name.split("."))),
            value=sql.Literal(value),
            **names,
        )
