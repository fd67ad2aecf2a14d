"""Every setting of the service, and how they have to fit together."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from coupon_service.settings.values import (
    PREFIX,
    Count,
    DatabaseUrl,
    Host,
    MessageBytes,
    Milliseconds,
    Port,
    RateLimits,
    RedisUrl,
    TokenName,
    TokenSecret,
    variable,
)


class Settings(BaseSettings):
    """The settings, checked one by one and against each other."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        populate_by_name=True,
        extra="ignore",  # load_settings() refuses unknown names, with a hint
        frozen=True,
    )

    host: Host = Field(
        "127.0.0.1",
        description="Address of the gRPC port. Without authentication, one that other machines can"
        " reach is refused unless COUPON_AUTH=none is set.",
    )
    port: Port = Field(50_051, description="gRPC port. 0 takes a free one.")
    workers: Count = Field(
        default_factory=lambda: os.cpu_count() or 1,
        description="Worker processes behind the port. Default: one for each processor core, on"
        " which it stays when there are as many.",
    )
    metrics_host: Host = Field(
        "127.0.0.1", description="Address of the HTTP port for /metrics, /healthz and /readyz."
    )
    metrics_port: Port = Field(
        9_464, description="HTTP port for /metrics, /healthz and /readyz. 0 takes a free one."
    )
    tls_certificate_file: Path | None = Field(
        default=None,
        description="Certificate of the gRPC port in PEM form, then the chain up to its"
        " authority. With it the port speaks TLS only. Read again when it changes.",
    )
    tls_key_file: Path | None = Field(
        default=None, description="Private key of the certificate in PEM form, without passphrase."
    )
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="Authorities in PEM form. With it, callers need a certificate that one of them"
        " has signed.",
    )
    auth: Literal["none", "jwt"] = Field(
        "none",
        description="How callers prove who they are. none: not at all, everybody may do everything."
        " jwt: with a bearer token, which needs COUPON_JWT_KEYS_FILE or COUPON_JWT_SECRET.",
    )
    jwt_keys_file: Path | None = Field(
        None,
        description="JWK Set with the public keys of tokens. A key is for tokens of its kid and its"
        " iss, which a key without one has from COUPON_JWT_ISSUER. Read again when it changes.",
    )
    jwt_secret: TokenSecret = Field(
        default=None,
        description="Secret of HS256 tokens without a kid. Whoever has it can make tokens:"
        " coupon-service token does. coupon-service dev makes one when there are no keys.",
    )
    jwt_issuer: TokenName = Field(
        "coupon-service", description="Issuer (iss) of tokens, for the secret and keys without iss."
    )
    jwt_audience: TokenName = Field(
        "coupon-service", description="What the audience (aud) of tokens has to contain."
    )
    reflection: bool = Field(
        default=False, description="Whether grpcurl and others may ask the server for its contract."
    )
    request_max_bytes: MessageBytes = Field(
        65_536, description="Largest request message, in bytes."
    )
    import_request_max_bytes: MessageBytes = Field(
        1_048_576,
        description="Largest message of ImportCodes, BatchRedeemCodes and BatchAssignRandomCodes,"
        " in bytes.",
    )
    default_deadline_ms: Milliseconds = Field(
        5_000,
        description="Deadline of a call without one that is no stream, in milliseconds.",
    )

    stream_idle_ms: Milliseconds = Field(
        60_000,
        description="Longest wait for the next message of an ImportCodes stream, in milliseconds.",
    )
    calls_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000,
        description="Calls that may be open in each worker at a time; more are answered OVERLOADED,"
        " at once.",
    )
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        5_000,
        description="Client connections that each worker keeps open at a time; more are closed.",
    )

    rate_limit_end_users: RateLimits = Field(
        "100/minute",
        description="Calls of an end-user token, for each class of methods: reads, changes, and the"
        " calls at the till.",
    )
    rate_limit_services: RateLimits = Field(
        "none", description="Calls of any other token, counted in the same way."
    )
    rate_limit_peers: RateLimits = Field(
        "100/minute",
        description="Calls of an address without a token (an IPv6 address counts as its /64), in"
        " the same way. Addresses of this machine are limited only when this is set explicitly.",
    )
    guess_limit_end_users: RateLimits = Field(
        "10/minute;100/day",
        description="Unknown codes of an end user: who has a token, or whose user_id a call names."
        " After so many, all their look-ups of codes are RATE_LIMITED until the time is over.",
    )
    guess_limit_services: RateLimits = Field(
        "none",
        description="Unknown codes of a token that is not an end user's, for all its users"
        " together.",
    )
    guess_limit_peers: RateLimits = Field(
        "10/minute;100/day",
        description="Unknown codes of an address without a token. Those that this machine looks up"
        " without one count, also against the user, only when this is set explicitly.",
    )

    database_url: DatabaseUrl = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}DATABASE_URL", "DATABASE_URL"),
        description="PostgreSQL. Also read as DATABASE_URL. Not set: coupon-service dev starts"
        " its own server, coupon-service serve refuses to start.",
    )
    pool_min_size: Count = Field(
        2, description="Connections that each worker keeps open to PostgreSQL."
    )
    pool_max_size: Count = Field(
        6, description="Connections that each worker opens to PostgreSQL at most."
    )
    pool_timeout_ms: Milliseconds = Field(
        1_000, description="Longest wait for a free connection, in milliseconds."
    )
    lock_timeout_ms: Milliseconds = Field(
        1_500, description="Longest wait for a row lock, in milliseconds; then the try is repeated."
    )
    statement_timeout_ms: Milliseconds = Field(
        3_000, description="Longest time of one SQL statement, in milliseconds."
    )
    idle_in_transaction_timeout_ms: Milliseconds = Field(
        5_000,
        description="Longest pause of a transaction before PostgreSQL ends it, in milliseconds.",
    )
    tcp_user_timeout_ms: Milliseconds = Field(
        5_000,
        description="Longest silence of the network before a connection is dead, in milliseconds.",
    )
    transaction_attempts_max: Annotated[int, Field(ge=1, le=10)] = Field(
        3,
        description="Tries of a transaction that meets deadlocks, lock timeouts and the like.",
    )

    batch_max_size: Annotated[int, Field(ge=1, le=10_000)] = Field(
        256, description="Commands that are executed in one transaction at most."
    )
    batch_max_wait_ms: Annotated[int, Field(ge=0, le=1_000)] = Field(
        50,
        description="Longest wait of a busy worker for more commands in a batch, in milliseconds:"
        " more than 6, or 0 for none. An idle one waits a few turns of its event loop, some ten"
        " microseconds.",
    )
    batches_in_flight: Count = Field(
        1,
        description="Batches of single commands that each worker executes at the same time. More"
        " than one where PostgreSQL is far away.",
    )
    queue_max_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="Commands that may wait in each worker; more are answered OVERLOADED."
    )

    redis_url: RedisUrl = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}REDIS_URL", "REDIS_URL"),
        description="Redis. Also read as REDIS_URL. Not set: as for the database.",
    )
    redis_timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        50, description="Longest wait for Redis to connect or to answer, in milliseconds."
    )
    lock_ttl_default_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        60_000,
        description="Time of a lock for which neither caller nor book names one, in milliseconds.",
    )
    lock_ttl_max_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        900_000, description="Longest time that a lock is granted or extended for, in milliseconds."
    )
    lock_extensions_max: Annotated[int, Field(ge=0, le=1_000)] = Field(
        3, description="How often a lock may be extended."
    )
    locks_per_user_max: Count = Field(
        5, description="Live locks that a user of a business may hold."
    )
    clock_tolerance_ms: Annotated[int, Field(ge=0, le=60_000)] = Field(
        1_000,
        description="How far the clocks of the machines may differ, in milliseconds. A lock is kept"
        " longer than its token by this and the statement timeout.",
    )
    lock_token_secret: TokenSecret = Field(
        default=None,
        description="Secret that lock and page tokens are signed with; the same on all replicas."
        " Not set: coupon-service dev makes one and keeps it in its data folder, coupon-service"
        " serve refuses to start.",
    )
    lock_token_secret_previous: TokenSecret = Field(
        default=None,
        description="The secret before the present one. Tokens signed with it are still accepted;"
        " set it for the longest lock time after a change.",
    )
    sweep_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        5_000, description="Time between two looks for expired locks, in milliseconds."
    )
    stock_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        5_000,
        description="Time between two looks at what books with a low_threshold have left, in"
        " milliseconds.",
    )

    book_series_max: Annotated[int, Field(ge=0, le=10_000)] = Field(
        100,
        description="Books with a low_threshold that have gauges of their own in the metrics: first"
        " those that run low, then those that are used up.",
    )
    drain_grace_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        5_000,
        description="Time between NOT_SERVING and the end of the port on SIGTERM, in milliseconds,"
        " so that load balancers notice.",
    )
    shutdown_timeout_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        10_000, description="Longest time that calls in flight get to finish, in milliseconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="json: one object a line. console: for people. auto: console on a terminal,"
        " json anywhere else.",
    )
    tracing: bool = Field(
        default=False,
        description="Whether calls are traced, with OpenTelemetry, and sent to a collector by OTLP"
        " over gRPC: the OTEL_* variables say where to and which. Needs coupon-service[tracing].",
    )
    pid_file: Path | None = Field(
        default=None,
        description="File by which coupon-service reload and restart find the service; held while"
        " it runs. Not set: coupon-service dev has one in its data folder, coupon-service serve"
        " none.",
    )
    data_dir: Path = Field(
        Path(".data"),
        description="Folder of the servers and the secrets of coupon-service dev.",
    )

    @property
    def lock_grace_ms(self) -> int:
        """How much longer than its token a lock is kept: who was admitted in time is done then."""
        return self.statement_timeout_ms + self.clock_tolerance_ms

    @property
    def open_without_auth(self) -> bool:
        """Whether other machines may reach the service without proving who they are."""
        return self.auth == "none" and not _is_loopback(self.host)

    @property
    def peers_limited(self) -> bool:
        """Whether there are callers without a token whose calls are limited."""
        explicit = "rate_limit_peers" in self.model_fields_set
        return self.rate_limit_peers != "none" and (explicit or self.open_without_auth)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        lines = list(self._orders_broken())
        lines += self._unverified()
        if self.open_without_auth and "auth" not in self.model_fields_set:
            lines.append(
                f"COUPON_HOST: {self.host} can be reached from other machines and callers are not"
                " authenticated; expected 127.0.0.1, or COUPON_AUTH=none to allow it"
            )
        if self.tracing and not _is_installed("opentelemetry.exporter.otlp.proto.grpc"):
            lines.append("COUPON_TRACING: needs pip install 'coupon-service[tracing]'")
        if lines:
            raise ValueError("\n".join(lines))
        return self

    def _unverified(self) -> Iterator[str]:
        """Encryption without knowing with whom."""
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            yield "COUPON_TLS_CERTIFICATE_FILE: expected together with COUPON_TLS_KEY_FILE"
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            yield "COUPON_TLS_CLIENT_CA_FILE: expected together with COUPON_TLS_CERTIFICATE_FILE"
        database, redis = (_query(url) for url in (self.database_url, self.redis_url))
        if database.get("sslmode") == "require" and "sslrootcert" not in database:
            yield (
                "COUPON_DATABASE_URL: sslmode=require does not verify the server's certificate;"
                " expected sslmode=verify-full, with sslrootcert=<file> or sslrootcert=system"
            )
        if redis.get("ssl_cert_reqs", "required") != "required":
            yield "COUPON_REDIS_URL: expected ssl_cert_reqs=required, so that it is verified"
        if redis.get("ssl_check_hostname", "true").lower() != "true":
            yield "COUPON_REDIS_URL: expected ssl_check_hostname=true, so that it is verified"

    def _orders_broken(self) -> Iterator[str]:
        for smaller, relation, larger in (
            ("lock_timeout_ms", "less than", "statement_timeout_ms"),
            ("statement_timeout_ms", "less than", "default_deadline_ms"),
            ("pool_min_size", "at most", "pool_max_size"),
            ("batches_in_flight", "at most", "pool_max_size"),
            ("batch_max_size", "at most", "queue_max_size"),
            ("lock_ttl_default_ms", "at most", "lock_ttl_max_ms"),
        ):
            value, bound = getattr(self, smaller), getattr(self, larger)
            if value > bound or (value == bound and relation == "less than"):
                yield (
                    f"{variable(smaller)}: expected {relation} {variable(larger)} ({bound}),"
                    f" not {value}"
                )


def _query(url: SecretStr | None) -> dict[str, str]:
    """The parameters of a URL."""
    return dict(parse_qsl(url.get_secret_value().partition("?")[2])) if url is not None else {}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
