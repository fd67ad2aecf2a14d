"""Whether PostgreSQL is one that the service can work with, and what to do when it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg

from coupon_service.store.arrays import text_array
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.privileges import PRIVILEGES
from coupon_service.store.sessions import DatabaseSettings, sentence_of
from coupon_service.telemetry.readiness import Readiness

VERSION_MIN: Final = 15
"""The oldest PostgreSQL that knows all the statements."""

SELECT_SERVER: Final = """
SELECT current_setting('server_version_num')::integer / 10000, getdatabaseencoding(),
    current_setting('transaction_read_only')::boolean
"""


def server_problems(major: int, encoding: str, *, read_only: bool) -> dict[Readiness, str]:
    """What is wrong with a server of which SELECT_SERVER returned this, each in a sentence."""
    problems: dict[Readiness, str] = {}
    if read_only:
        problems[Readiness.READ_ONLY] = (
            "The server is read-only, as a standby is: name the primary,"
            " or all of them with target_session_attrs=read-write."
        )
    if major < VERSION_MIN:
        problems[Readiness.VERSION_TOO_OLD] = (
            f"PostgreSQL {major} is too old: {VERSION_MIN} or newer is needed."
        )
    if encoding != "UTF8":
        problems[Readiness.WRONG_ENCODING] = (
            f"The database is in {encoding}; codes and ids need UTF8."
        )
    return problems


SELECT_TIMEOUTS: Final = """
SELECT name, (extract(epoch FROM current_setting(name)::interval) * 1000)::bigint
FROM unnest(%s::text[]) AS parameter (name)
"""

SELECT_PLANNING: Final = "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS p (name)"

# Of a schema that may not be used even the names are not found.
SELECT_MISSING_PRIVILEGES: Final = """
SELECT privilege || ' on ' || relation
FROM unnest(%s::text[], %s::text[]) AS needed (relation, privilege)
WHERE NOT CASE privilege
    WHEN 'USAGE' THEN has_sequence_privilege(to_regclass(relation), privilege)
    ELSE has_table_privilege(to_regclass(relation), privilege) END
UNION ALL
SELECT 'USAGE on schema ' || nspname
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = '_yoyo_migration' AND to_regclass('_yoyo_migration') IS NULL
    AND NOT has_schema_privilege(relnamespace, 'USAGE')
"""


POOLER_ADVICE: Final = (
    "Behind a pooler set COUPON_SESSION_PARAMETERS=transaction, or =role and run what"
    " coupon-service migrate grants prints."
)


async def check_server(connection: Connection, settings: DatabaseSettings) -> dict[Readiness, str]:
    """What keeps the service from working on this connection, each in a sentence."""
    needed = [(relation, privilege) for relation, all_ in PRIVILEGES.items() for privilege in all_]
    pipeline = Pipeline(connection)
    server = pipeline.add(SELECT_SERVER)
    timeouts = pipeline.add(SELECT_TIMEOUTS, (text_array(settings.timeouts_ms),))
    planning = pipeline.add(SELECT_PLANNING, (text_array(settings.planning),))
    privileges = pipeline.add(
        SELECT_MISSING_PRIVILEGES,
        (text_array(it for it, _ in needed), text_array(it for _, it in needed)),
    )
    await pipeline.run()
    major, encoding, read_only = server[0]
    problems = server_problems(major, encoding, read_only=read_only)
    if unsafe := unsafe_settings(settings, dict(timeouts), dict(planning)):
        problems[Readiness.UNSAFE_SETTINGS] = (
            f"The settings of the session are not safe: {unsafe}. {POOLER_ADVICE}"
        )
    if privileges:
        problems[Readiness.NO_PRIVILEGE] = (
            f"The role lacks {_shown([name for (name,) in privileges])}:"
            " coupon-service migrate grants prints what it needs."
        )
    return problems


def unsafe_settings(
    settings: DatabaseSettings, timeouts_ms: dict[str, int], planning: dict[str, str]
) -> str:
    """The parameters that are in effect and are not as they have to be; empty when all are.

    A timeout may be shorter. 0 is none.
    """
    wrong = [
        f"{name} is {timeouts_ms[name] or 'off'}, not {most_ms} ms"
        for name, most_ms in settings.timeouts_ms.items()
        if not 0 < timeouts_ms[name] <= most_ms
    ]
    wrong += [
        f"{name} is {planning[name]}, not {value}"
        for name, value in settings.planning.items()
        if planning[name] != value
    ]
    return ", ".join(wrong)


def _shown(missing: Sequence[str]) -> str:
    """The first of them: without any privilege there are thirty."""
    return ", ".join(missing[:3]) + (" and more" if len(missing) > 3 else "")


STARTING_UP: Final = ("starting up", "not yet accepting connections", "in recovery mode")
"""How PostgreSQL, in English, refuses connections until it has started."""

NOT_WRITABLE: Final = ("session is read-only", "server is in hot standby mode")
"""How libpq says that no host of a URL has the target_session_attrs."""


def connection_problem(error: psycopg.Error) -> tuple[Readiness, str]:
    """Why no connection can be made: a flag that tells it, 0 for none, and what was said."""
    said = sentence_of(error)
    if any(text in said for text in STARTING_UP):
        return Readiness.POSTGRESQL | Readiness.STARTING_UP, said
    if any(text in said for text in NOT_WRITABLE):
        return Readiness.POSTGRESQL | Readiness.READ_ONLY, said
    if "unsupported startup parameter" in said:
        said = f"{said}. {POOLER_ADVICE}"
    return Readiness(0), said
