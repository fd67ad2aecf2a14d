"""Keys and tokens in a service that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr
from support.calls import tried
from support.command_line import run_apart
from support.key_publisher import KEYCLOAK, KEYCLOAK_CLAIMS, key_publisher
from support.service import Api, ServerThread, books, settings_for
from support.service_process import (
    environment_of,
    events_in,
    is_ready,
    serving,
    workers_of,
)
from support.token_issuers import AUDIENCE, Issuer, key_file
from support.waiting import until

from coupon_service.cli.serve import supervise
from coupon_service.settings import Settings


def listing(address: str, token: str) -> str:
    """OK, or why a caller with this token may not list books."""
    api = Api(address, token)
    try:
        return tried(lambda: api.books.ListCouponBooks(books.ListCouponBooksRequest()))
    finally:
        api.close()


def test_keys_change_while_the_service_runs(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str, tmp_path: Path
) -> None:
    old, new = Issuer("2025", "ES256"), Issuer("2026", "EdDSA")
    file = key_file(tmp_path / "keys.json", old)
    with new_database() as database_url:
        settings = settings_for(
            database_url, redis_server_url, auth="jwt", jwt_keys_file=file, jwt_audience=AUDIENCE
        )
        with ServerThread(settings) as server:
            before, after = old.token(), new.token()
            assert listing(server.address, before) == "OK"
            assert listing(server.address, after) == "UNAUTHENTICATED"
            key_file(tmp_path / "next", old, new).rename(file)
            until(lambda: listing(server.address, after) == "OK")
            assert listing(server.address, before) == "OK"
            key_file(file, new)
            until(lambda: listing(server.address, before) == "UNAUTHENTICATED")
            assert listing(server.address, after) == "OK"


def test_keys_of_a_provider_change_while_the_service_runs(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coupon_service.security.key_fetcher.PAUSE_S", 0.0)
    old, new = Issuer("2025", "RS256", KEYCLOAK), Issuer("2026", "RS256", KEYCLOAK)
    claims = {**KEYCLOAK_CLAIMS, "realm_access": {"roles": ["offline_access", "redeemer"]}}
    with new_database() as database_url, key_publisher(old) as publisher:
        settings = settings_for(
            database_url,
            redis_server_url,
            auth="jwt",
            jwt_jwks_url=publisher.url,
            jwt_issuer=KEYCLOAK,
            jwt_audience="coupon-service account",
            jwt_roles_claim="realm_access.roles",
        )
        with ServerThread(settings) as server:
            assert listing(server.address, old.token(**claims)) == "OK"
            publisher.publish(new)
            assert listing(server.address, new.token(**claims)) == "OK"
            assert listing(server.address, old.token(**claims)) == "UNAUTHENTICATED"
            publisher.status = 503
            assert listing(server.address, new.token(**claims)) == "OK"


def test_a_worker_that_starts_while_the_provider_is_away_knows_its_keys(
    database_url: str, redis_server_url: str, tmp_path: Path
) -> None:
    issuer = Issuer("2025", "RS256", KEYCLOAK)
    token = issuer.token(aud="coupon-service", roles=["redeemer"])
    with key_publisher(issuer) as publisher:
        environment = environment_of(database_url, redis_server_url) | {
            "COUPON_AUTH": "jwt",
            "COUPON_JWT_ISSUER": KEYCLOAK,
            "COUPON_JWT_JWKS_URL": publisher.url,
        }
        address = f"127.0.0.1:{environment['COUPON_PORT']}"
        with serving(environment, tmp_path) as service:
            publisher.status = 503
            before = {worker.pid for worker in workers_of(service)}
            for worker in workers_of(service):
                worker.kill()
            until(lambda: len({it.pid for it in workers_of(service)} - before) == len(before))
            until(lambda: is_ready(environment))
            assert listing(address, token) == "OK"
            assert events_in(tmp_path / "log", "keys not fetched")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "COUPON_JWT_KEYS_FILE or COUPON_JWT_JWKS_URL or COUPON_JWT_SECRET: has to be set"),
        (
            {"COUPON_JWT_JWKS_URL": "http://127.0.0.1:9/certs"},
            "There is no key that tokens can be verified with. The keys of http://127.0.0.1:9/",
        ),
        ({"COUPON_JWT_KEYS_FILE": "nowhere"}, "nowhere cannot be read: No such file"),
        ({"COUPON_JWT_KEYS_FILE": "."}, ". cannot be read: Is a directory."),
    ],
    ids=["none", "no provider", "no file", "a folder"],
)
def test_without_keys_nothing_is_started(
    variables: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done = run_apart(
        tmp_path,
        "serve",
        COUPON_AUTH="jwt",
        COUPON_DATABASE_URL="postgresql://nobody@127.0.0.1:9/nothing",
        COUPON_REDIS_URL="redis://127.0.0.1:9",
        COUPON_LOCK_TOKEN_SECRET="only the tests sign with this one",
        **variables,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "changes", "warnings"),
    [
        ("192.0.2.1", {"auth": "none"}, 1),
        ("127.0.0.1", {"auth": "none"}, 0),
        ("192.0.2.1", {"auth": "jwt", "jwt_secret": SecretStr("s" * 32)}, 0),
    ],
    ids=["open", "loopback", "tokens"],
)
def test_an_open_service_without_authentication_says_so_when_it_starts(
    host: str, changes: dict[str, Any], warnings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def started(_: object) -> None:
        return

    def configured(*_: object) -> None:
        return

    monkeypatch.setattr("coupon_service.process.supervisor.Supervisor.run", started)
    monkeypatch.setattr("coupon_service.telemetry.logs.configure_logging", configured)
    settings = Settings(_env_file=None, host=host, **changes)  # type: ignore[call-arg]
    with structlog.testing.capture_logs() as lines:
        asyncio.run(supervise(settings, lambda: settings))
    assert [line["log_level"] for line in lines] == ["warning"] * warnings
    assert all(line["host"] == host for line in lines)
