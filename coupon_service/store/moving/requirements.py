"""What a move needs of both servers: looked at before anything is done, and said in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from coupon_service.store.moving.sides import Connection, Names, has_tables
from coupon_service.store.server_check import VERSION_MIN

SUBSCRIBERS_SINCE: Final = 16
"""The PostgreSQL from which on a role can be given the right to subscribe."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server and the role there are like. `free_slots`, `free_senders`: for replication."""

    major: int
    encoding: str
    is_read_only: bool
    wal_level: str
    free_slots: int
    free_senders: int
    apply_workers: int
    role: str
    is_superuser: bool
    can_replicate: bool
    can_subscribe: bool
    can_create: bool
    has_citus: bool


SELECT_FACTS: Final = """
SELECT current_setting('server_version_num')::integer / 10000, getdatabaseencoding(),
    current_setting('transaction_read_only')::boolean, current_setting('wal_level'),
    current_setting('max_replication_slots')::integer
        - (SELECT count(*) FROM pg_replication_slots)::integer,
    current_setting('max_wal_senders')::integer
        - (SELECT count(*) FROM pg_stat_replication)::integer,
    current_setting('max_logical_replication_workers')::integer,
    current_user::text, rolsuper, rolsuper OR rolreplication,
    rolsuper OR EXISTS (SELECT FROM pg_roles AS granted
        WHERE granted.rolname = 'pg_create_subscription'
            AND pg_has_role(current_user, granted.oid, 'USAGE')),
    has_database_privilege(current_database(), 'CREATE'),
    to_regclass('pg_catalog.pg_dist_schema') IS NOT NULL
FROM pg_roles WHERE rolname = current_user
"""


def read_facts(connection: Connection) -> ServerFacts:
    """Of the server and the role of the connection."""
    row = connection.execute(SELECT_FACTS).fetchone()
    if row is None:
        raise LookupError("pg_roles has no row for the current role")
    return ServerFacts(*row)


def problems_of_servers(source: ServerFacts, target: ServerFacts) -> Iterator[str]:
    """What they lack."""
    yield from _problems_of_both(source, target)
    yield from _problems_of_replication(source, target)


def _problems_of_both(source: ServerFacts, target: ServerFacts) -> Iterator[str]:
    for where, facts in (("from", source), ("to", target)):
        if facts.major < VERSION_MIN:
            yield f"The server to move {where} is PostgreSQL {facts.major}: needs {VERSION_MIN}."
        if facts.is_read_only:
            yield f"The server to move {where} is read-only, as a standby is: name the primary."
        if not facts.can_create:
            yield f"The role {facts.role} needs CREATE on the database to move {where}."
        if facts.has_citus:
            yield f"The database to move {where} is of Citus: it moves shards by citus_schema_move."
    if source.encoding != target.encoding:
        yield f"The database to move to is in {target.encoding}, and has to be {source.encoding}."


def _problems_of_replication(source: ServerFacts, target: ServerFacts) -> Iterator[str]:
    if source.wal_level != "logical":
        yield (
            f"The server to move from has wal_level {source.wal_level}: set wal_level = logical"
            " and restart it."
        )
    if not source.can_replicate:
        yield f"The role {source.role} needs REPLICATION: ALTER ROLE {source.role} REPLICATION."
    if source.free_slots < 1:
        yield "The server to move from has no free replication slot: raise max_replication_slots."
    if source.free_senders < 1:
        yield "The server to move from has no free WAL sender: raise max_wal_senders."
    if target.apply_workers < 1:
        yield "The server to move to cannot subscribe: raise max_logical_replication_workers."
    if not target.can_subscribe:
        by = (
            f"GRANT pg_create_subscription TO {target.role}"
            if target.major >= SUBSCRIBERS_SINCE
            else "use a superuser there"
        )
        yield f"The role {target.role} may not subscribe: {by}."


SELECT_FOREIGN_TABLES: Final = """
SELECT relname::text FROM pg_class
WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'
    AND NOT pg_has_role(current_user, relowner, 'USAGE')
ORDER BY relname LIMIT 1
"""

SELECT_STEPS = "SELECT migration_id FROM {}._yoyo_migration ORDER BY migration_id"

SELECT_GRANTEES: Final = """
SELECT DISTINCT pg_get_userbyid(acl.grantee)::text
FROM pg_class, aclexplode(relacl) AS acl
WHERE pg_class.oid = to_regclass(%s) AND acl.privilege_type = 'INSERT'
    AND acl.grantee NOT IN (0, relowner)
ORDER BY 1
"""

HAS_ROLE: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)"


def grantees(source: Connection, names: Names) -> list[str]:
    """The roles of the service in the schema, beside its owner."""
    found = source.execute(SELECT_GRANTEES, [f"{names.schema}.redemption_audit"]).fetchall()
    return [role for (role,) in found]


def problems_of_schema(source: Connection, target: Connection, names: Names) -> Iterator[str]:
    """What is in the way of the schema."""
    foreign = source.execute(SELECT_FOREIGN_TABLES, [names.schema]).fetchone()
    if foreign is not None:
        yield f"The role to move with does not own {names.schema}.{foreign[0]}."
    if has_tables(target, names.schema):
        yield f"The database to move to has a schema {names.schema} already: drop it, or move back."
    for role in grantees(source, names):
        if target.execute(HAS_ROLE, [role]).fetchone() != (True,):
            yield f"The role {role} of the service is missing where the shard is to go: create it."
