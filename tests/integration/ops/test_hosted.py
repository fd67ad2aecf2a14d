"""The service on hosted servers, as closely as can be here: over TLS, with the least of rights."""

# redis-py does not type all of its arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psycopg
from psycopg import sql
from redis import Redis
from support.certificates import Authority
from support.doc_pages import ROOT, read
from support.pgbouncer import needs_pgbouncer, pgbouncer
from support.postgres_roles import new_role
from support.service import Api, ServerThread, settings_for
from support.tls_proxy import tls_in_front_of
from support.tour import take_tour

from coupon_service.store import migrations

HOST = "localhost"
PASSWORD = "of-a-user-of-the-tests"


@contextmanager
def redis_with_acl(redis_url: str, authority: Authority) -> Generator[str]:
    """The URL of this Redis over TLS, for the user of the documentation."""
    (rule,) = re.findall(
        r"^ACL SETUSER coupon on >\S+ (.+)$",
        read(ROOT / "docs" / "operations.md").replace("\\\n", ""),
        re.MULTILINE,
    )
    url = urlsplit(redis_url)
    assert url.port is not None
    with closing(Redis.from_url(redis_url)) as admin:
        user = ["ACL", "SETUSER", "hosted", "reset", "on", f">{PASSWORD}", *rule.split()]
        admin.execute_command(*user)
        try:
            with tls_in_front_of(url.port, authority.sign("redis", HOST)) as port:
                query = urlencode({"ssl_ca_certs": authority.path})
                yield f"rediss://hosted:{PASSWORD}@{HOST}:{port}{url.path}?{query}"
        finally:
            admin.execute_command("ACL", "DELUSER", "hosted")


@contextmanager
def pooler_with_tls(role_url: str, folder: Path, authority: Authority) -> Generator[str]:
    """The URL of the database through a pooler in transaction mode that takes TLS alone."""
    own = authority.sign("pooler", HOST)
    for file in (own.certificate, own.key):
        file.chmod(0o644)
    with pgbouncer(
        folder,
        role_url,
        auth_type="plain",
        client_tls_sslmode="require",
        client_tls_cert_file=str(own.certificate),
        client_tls_key_file=str(own.key),
    ) as pooler:
        url = urlsplit(pooler.url(role_url))
        query = urlencode({"sslmode": "verify-full", "sslrootcert": authority.path})
        netloc = f"{url.username}:{url.password}@{HOST}:{url.port}"
        yield url._replace(netloc=netloc, query=query).geturl()


@needs_pgbouncer
def test_a_pooler_with_tls_and_a_redis_with_tls_and_an_acl(
    empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    authority = Authority(tmp_path, "authority")
    with new_role(empty_database_url) as (role, role_url):
        with psycopg.connect(empty_database_url) as connection:
            connection.execute(
                sql.SQL("CREATE SCHEMA AUTHORIZATION {}").format(sql.Identifier(role))
            )
        with (
            pooler_with_tls(role_url, tmp_path, authority) as pooled_url,
            redis_with_acl(redis_url, authority) as secured_url,
        ):
            migrations.apply(pooled_url, pooled=True)
            settings = settings_for(
                pooled_url,
                secured_url,
                session_parameters="transaction",
                prepared_statements=False,
            )
            with ServerThread(settings) as running, closing(Api(running.address)) as api:
                take_tour(api)
        with psycopg.connect(empty_database_url) as connection:
            owners = connection.execute(
                "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'coupon%'"
            ).fetchall()
    assert owners == [(role,)]
