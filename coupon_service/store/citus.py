"""Citus, where the schema of a shard is a distributed one: which node has it, and what it needs.

Every node answers for every schema, by asking the one that has it. The service does not let it: it
would draw numbers of its own for the events, and look for transactions at the wrong place. So it
connects to the node that has the schema, and has others say when they ask elsewhere.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import sql

MIGRATION_PARAMETERS: Final = {
    "citus.enable_schema_based_sharding": "on",
    "citus.enable_unsafe_triggers": "on",
}
"""Of the sessions that make the schema of a shard: it is a distributed one, and has triggers. They
look at rows of that schema only, so that they are as safe as elsewhere. To other servers these are
names that mean nothing."""

ASKED_ELSEWHERE: Final = "assign_distributed_transaction_id"
"""In what a node sends to another one, before the first statement of a transaction there."""

SESSION_PARAMETERS: Final = {
    # A plan that is made for all parameters is refused, or even answers for those of another time.
    "plan_cache_mode": "force_custom_plan",
    "citus.log_remote_commands": "on",
    "citus.grep_remote_commands": f"%{ASKED_ELSEWHERE}%",
}
"""Of the sessions of the service on a node."""


class OnAnotherNodeError(pg.UndefinedTable):
    """The schema is on another node than the one that was asked."""


def has_asked_elsewhere(notice: psycopg.errors.Diagnostic) -> bool:
    """Whether this is the notice of a node that asks another one."""
    return ASKED_ELSEWHERE in (notice.message_primary or "")


# --- where it is ---------------------------------------------------------------------------------

# By its name only where it is there: no statement may fail in a transaction.
HAS_CITUS: Final = "SELECT to_regclass('pg_catalog.pg_dist_schema') IS NOT NULL"

SELECT_NODE: Final = """
SELECT node.nodename, node.nodeport::text, current_database(),
    node.groupid = (SELECT groupid FROM pg_dist_local_group)
FROM pg_namespace
JOIN pg_dist_schema ON schemaid = pg_namespace.oid
JOIN pg_dist_partition USING (colocationid)
JOIN pg_dist_shard USING (logicalrelid)
JOIN pg_dist_placement USING (shardid)
JOIN pg_dist_node AS node USING (groupid)
WHERE nspname = %s AND noderole = 'primary'
LIMIT 1
"""
"""Host, port and database of the node that has a schema, and whether it is the one that is asked.
Any of them knows."""


# --- made ----------------------------------------------------------------------------------------

IS_DISTRIBUTED: Final = """
SELECT EXISTS (SELECT FROM pg_dist_schema WHERE schemaid = %s::regnamespace)
"""

SELECT_WITHOUT_KEY: Final = """
SELECT relname FROM pg_class
WHERE relnamespace = %s::regnamespace AND relkind = 'r' AND relreplident = 'd'
    AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
"""

# A sequence that is the default of a column is kept on each node.
KEEP_FENCES: Final = """
CREATE TABLE IF NOT EXISTS coupon_citus_fences (
    fence  bigint PRIMARY KEY DEFAULT nextval('lock_fences')
)
"""

# Citus gives the sequences of each node a range of their own, in which a shard that moves may come
# to lower numbers. A fence that somebody has is one of an event, so that the newest event tells
# whether there are any from elsewhere; far fewer than the step have been drawn without one.
MAKE_GO_ON: Final = sql.SQL("""
CREATE OR REPLACE FUNCTION coupon_go_on() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
DECLARE
    above bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('coupon_go_on ' || current_schema(), 0));
    SELECT max(sequence) INTO above FROM redemption_audit;
    IF above > coalesce(pg_sequence_last_value('redemption_audit_numbers'), 0) THEN
        above := above + (1::bigint << 40);
        PERFORM set_config('citus.enable_ddl_propagation', 'off', true);
        ALTER SEQUENCE redemption_audit_numbers MINVALUE 1 NO MAXVALUE;
        ALTER SEQUENCE lock_fences MINVALUE 1 NO MAXVALUE;
        PERFORM setval('redemption_audit_numbers', above), setval('lock_fences', above);
    END IF;
END
$$
""")

GO_ON: Final = """
BEGIN; SET LOCAL statement_timeout = 5000; SELECT coupon_go_on(); COMMIT
"""
"""Has a node that the shard has come to draw numbers and fences above all that there are. What a
session does first takes some time."""

TAKE_BACK: Final[tuple[LiteralString, ...]] = (
    "DROP TABLE IF EXISTS coupon_citus_fences",
    "DROP FUNCTION IF EXISTS coupon_go_on()",
)


def is_there(connection: psycopg.Connection[Any]) -> bool:
    """Whether the database is one of Citus."""
    return connection.execute(HAS_CITUS).fetchone() == (True,)


def prepare(connection: psycopg.Connection[Any], schema: str) -> None:
    """Makes the schema, which has all tables, one that Citus keeps on a node and can move. Does
    nothing where there is no Citus."""
    if not is_there(connection):
        return
    if connection.execute(IS_DISTRIBUTED, [schema]).fetchone() != (True,):
        connection.execute("SELECT citus_schema_distribute(%s::regnamespace)", [schema])
    for (table,) in connection.execute(SELECT_WITHOUT_KEY, [schema]).fetchall():
        alter = sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL")
        connection.execute(alter.format(sql.Identifier(schema, table)))
    connection.execute(KEEP_FENCES)
    connection.execute(MAKE_GO_ON.format(schema=sql.Identifier(schema)))


def take_back(connection: psycopg.Connection[Any]) -> None:
    """Takes back what `prepare` has made beside the tables."""
    for statement in TAKE_BACK:
        connection.execute(statement)
