"""What settings have to have for a purpose, and how they have to fit together."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Final
from urllib.parse import parse_qsl

from pydantic import SecretStr

from coupon_service.settings.settings import Settings
from coupon_service.settings.text import expected
from coupon_service.settings.values import variable


class Purpose(Enum):
    """What settings are loaded for."""

    MIGRATE = auto()
    """To change the schema, for which it does not matter who may call the service, and where."""

    SERVE = auto()
    """To run the service, with all that it needs."""


NEEDED: Final = {
    Purpose.MIGRATE: ("database_url",),
    Purpose.SERVE: ("database_url", "redis_url", "lock_token_secret"),
}
KEYS: Final = ("jwt_keys_file", "jwt_jwks_url", "jwt_secret")
"""Settings of keys that tokens are verified with, of which one is enough."""

HINTS: Final = {"lock_token_secret": ", such as those of openssl rand -base64 48"}


def missing(given: Mapping[str, object], purpose: Purpose | None) -> Iterator[str]:
    """A line for each setting that is needed and not among the given ones."""
    for name in NEEDED[purpose] if purpose is not None else ():
        if name not in given and not (name == "database_url" and "shard_urls" in given):
            what = f"{expected(Settings.model_fields[name])}{HINTS.get(name, '')}"
            yield f"{variable(name)}: has to be set, to {what}"
    if purpose is Purpose.SERVE and given.get("auth") == "jwt" and not given.keys() & set(KEYS):
        names = " or ".join(map(variable, KEYS))
        yield f"{names}: has to be set with COUPON_AUTH=jwt, for the keys of tokens"


def conflicts(settings: Settings, purpose: Purpose | None) -> Iterator[str]:
    """A line for each setting that does not fit the others."""
    yield from _unverified_servers(settings)
    yield from _misplaced_shards(settings)
    if purpose is Purpose.MIGRATE:
        return
    yield from _misordered(settings)
    yield from _too_many_connections(settings)
    yield from _unverified_callers(settings)
    if settings.tracing and not _is_installed("opentelemetry.exporter.otlp.proto.grpc"):
        yield "COUPON_TRACING: needs pip install 'coupon-service[tracing]'"


def _misordered(settings: Settings) -> Iterator[str]:
    for smaller, relation, larger in (
        ("lock_timeout_ms", "less than", "statement_timeout_ms"),
        ("statement_timeout_ms", "less than", "default_deadline_ms"),
        ("pool_min_size", "at most", "pool_max_size"),
        ("batches_in_flight", "at most", "pool_max_size"),
        ("batch_max_size", "at most", "queue_max_size"),
        ("lock_ttl_default_ms", "at most", "lock_ttl_max_ms"),
    ):
        value, bound = getattr(settings, smaller), getattr(settings, larger)
        if value > bound or (value == bound and relation == "less than"):
            yield (
                f"{variable(smaller)}: expected {relation} {variable(larger)} ({bound}),"
                f" not {value}"
            )


def _misplaced_shards(settings: Settings) -> Iterator[str]:
    """Shards that cannot be where the settings say."""
    urls, shards = len(settings.database_urls), settings.shards
    if settings.shard_urls is not None and shards % urls:
        yield (
            f"COUPON_SHARD_URLS: expected a number of URLs that divides COUPON_SHARDS ({shards}),"
            f" not {urls}"
        )
    if shards > 1 and settings.replica_url is not None:
        yield (
            "COUPON_REPLICA_URL: expected none with several shards, which may move to servers that"
            " it is no replica of; the servers of the shards answer"
        )
    if shards > 1 and settings.session_parameters == "role":
        yield (
            "COUPON_SESSION_PARAMETERS: expected startup or transaction with several shards, whose"
            " sessions differ in their schema, not role"
        )


def _too_many_connections(settings: Settings) -> Iterator[str]:
    """More connections to PostgreSQL than somebody may have thought of."""
    most, allowed = settings.database_connections_max, settings.shard_connections_max
    if settings.shards > 1 and most > allowed:
        yield (
            f"COUPON_SHARD_CONNECTIONS_MAX: expected at least {most}, which is COUPON_WORKERS"
            f" ({settings.workers}) x COUPON_SHARDS ({settings.shards}) x (COUPON_POOL_MAX_SIZE"
            f" ({settings.pool_max_size}) + 1), not {allowed}"
        )


def _unverified_callers(settings: Settings) -> Iterator[str]:
    """Ports that others reach without authentication, and incomplete TLS."""
    if (settings.tls_certificate_file is None) != (settings.tls_key_file is None):
        yield "COUPON_TLS_CERTIFICATE_FILE: expected together with COUPON_TLS_KEY_FILE"
    if settings.tls_client_ca_file is not None and settings.tls_certificate_file is None:
        yield "COUPON_TLS_CLIENT_CA_FILE: expected together with COUPON_TLS_CERTIFICATE_FILE"
    if settings.open_without_auth and "auth" not in settings.model_fields_set:
        yield (
            f"COUPON_HOST: {settings.host} can be reached from other machines and callers are not"
            " authenticated; expected 127.0.0.1, or COUPON_AUTH=none to allow it"
        )


def _unverified_servers(settings: Settings) -> Iterator[str]:
    """Encryption without authentication of the server."""
    name = "COUPON_DATABASE_URL" if settings.shard_urls is None else "COUPON_SHARD_URLS"
    databases = [(name, SecretStr(url)) for url in settings.database_urls]
    if settings.replica_url is not None:
        databases.append(("COUPON_REPLICA_URL", settings.replica_url))
    queries = [(named, _query(url)) for named, url in databases]
    unverified = (
        named
        for named, query in queries
        if query.get("sslmode") == "require" and "sslrootcert" not in query
    )
    for named in dict.fromkeys(unverified):
        yield (
            f"{named}: sslmode=require does not verify the server's certificate;"
            " expected sslmode=verify-full, with sslrootcert=<file> or sslrootcert=system"
        )
    redis = _query(settings.redis_url)
    if redis.get("ssl_cert_reqs", "required") != "required":
        yield "COUPON_REDIS_URL: expected ssl_cert_reqs=required, so that it is verified"
    if redis.get("ssl_check_hostname", "true").lower() != "true":
        yield "COUPON_REDIS_URL: expected ssl_check_hostname=true, so that it is verified"


def _query(url: SecretStr | None) -> dict[str, str]:
    """The parameters of a URL."""
    return dict(parse_qsl(url.get_secret_value().partition("?")[2])) if url is not None else {}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
