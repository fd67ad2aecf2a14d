"""The settings of the service."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from coupon_service.settings.processors import processors_available
from coupon_service.settings.values import (
    PREFIX,
    BusinessId,
    ClaimPath,
    ConnectionMilliseconds,
    Count,
    DatabaseUrl,
    DatabaseUrls,
    Host,
    KeysUrl,
    MessageBytes,
    Milliseconds,
    Port,
    RateLimits,
    RedisUrl,
    TokenName,
    TokenNames,
    TokenSecret,
    split_urls,
)

SHARDS_MAX: Final = 64
"""There are 256 buckets of businesses, which the shards share as evenly as can be."""


class Settings(BaseSettings):
    """The settings, validated one by one; `load_settings` validates them against each other."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        populate_by_name=True,
        extra="ignore",  # load_settings() rejects unknown names, with a hint
        frozen=True,
    )

    host: Host = Field(
        "127.0.0.1",
        description="Address of the gRPC port. Without authentication, an address that other"
        " machines can reach is refused unless COUPON_AUTH=none is set.",
    )
    port: Port = Field(50_051, description="gRPC port. 0 takes a free one.")
    workers: Count = Field(
        default_factory=lambda: min(processors_available(), 1_000),
        description="Worker processes behind the port. Default: one for each processor that the"
        " service may use, by its affinity and the CPU quota of its container. With as many"
        " workers as cores, each worker stays on its own core.",
    )
    metrics_host: Host = Field(
        "127.0.0.1", description="Address of the HTTP port for /metrics, /healthz and /readyz."
    )
    metrics_port: Port = Field(
        9_464, description="HTTP port for /metrics, /healthz and /readyz. 0 takes a free one."
    )
    tls_certificate_file: Path | None = Field(
        default=None,
        description="Certificate of the gRPC port in PEM form, followed by its chain. When set,"
        " the port accepts TLS only. The file is read again when it changes.",
    )
    tls_key_file: Path | None = Field(
        default=None, description="Private key of the certificate in PEM form, without passphrase."
    )
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="Client authorities in PEM form. When set, callers need a certificate that one"
        " of them has signed.",
    )
    auth: Literal["none", "jwt"] = Field(
        "none",
        description="How callers authenticate. none: not at all, every caller may do everything."
        " jwt: with a bearer token, which needs COUPON_JWT_KEYS_FILE,"
        " COUPON_JWT_JWKS_URL or COUPON_JWT_SECRET.",
    )
    jwt_keys_file: Path | None = Field(
        None,
        description="JWK Set with the public keys of tokens. A key verifies tokens with its kid and"
        " its iss; a key without iss uses COUPON_JWT_ISSUER. The file is read again when it"
        " changes.",
    )
    jwt_jwks_url: KeysUrl = Field(
        None,
        description="URL where an identity provider publishes the public keys of its tokens, as a"
        " JWK Set. It is fetched every five minutes, and when a token names an unknown key. Keys"
        " without iss use COUPON_JWT_ISSUER.",
    )
    jwt_secret: TokenSecret = Field(
        default=None,
        description="Secret of HS256 tokens without a kid. It can also sign tokens, as"
        " coupon-service token does. coupon-service dev makes one when there are no keys.",
    )
    jwt_issuer: TokenName = Field(
        "coupon-service",
        description="Issuer (iss) of tokens that the secret or a key without iss verifies.",
    )
    jwt_audience: TokenNames = Field(
        "coupon-service",
        description="Audiences, of which the aud of a token has to contain one.",
    )
    jwt_roles_claim: ClaimPath = Field(
        "roles",
        description="Claim with the roles of a token: its name, such as scope or"
        " https://example.com/roles, or a path into other claims, such as realm_access.roles.",
    )
    jwt_business_claim: ClaimPath = Field(
        "business_id", description="Claim with the only business that a token gives access to."
    )
    reflection: bool = Field(
        default=False,
        description="Enables server reflection, which lets clients such as grpcurl read the"
        " contract.",
    )
    request_max_bytes: MessageBytes = Field(
        65_536, description="Largest request message, in bytes."
    )
    import_request_max_bytes: MessageBytes = Field(
        1_048_576,
        description="Largest message of ImportCodes, ChangeCodes, BatchRedeemCodes,"
        " BatchAssignRandomCodes and Checkout, in bytes.",
    )
    default_deadline_ms: Milliseconds = Field(
        5_000,
        description="Deadline of a unary call that has none, in milliseconds.",
    )

    stream_idle_ms: Milliseconds = Field(
        60_000,
        description="Longest wait for the next message of an ImportCodes stream, and for the client"
        " of a Checkout stream to read its results, in milliseconds.",
    )
    calls_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000,
        description="Calls in flight in each worker at most, the operations of Checkout streams"
        " included; more are refused with OVERLOADED.",
    )
    streams_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        4_000,
        description="Checkout streams in each worker at most; more are refused with OVERLOADED.",
    )
    streams_of_connection_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        100,
        description="Checkout streams of one connection at most; more are refused with OVERLOADED.",
    )
    stream_operations_max: Annotated[int, Field(ge=1, le=100_000)] = Field(
        256,
        description="Operations in flight in one Checkout stream at most. With as many, it is read"
        " no more until the client has read results.",
    )
    watchers_max: Annotated[int, Field(ge=1, le=10_000)] = Field(
        64,
        description="WatchAuditEvents streams in each worker at most; more are refused with"
        " OVERLOADED.",
    )
    watchers_of_caller_max: Annotated[int, Field(ge=1, le=10_000)] = Field(
        16,
        description="WatchAuditEvents streams of one caller in each worker at most, or of one"
        " connection without authentication; more are refused with OVERLOADED.",
    )
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        5_000,
        description="Client connections in each worker at most; more are closed. When there are"
        " nearly as many, those go that have had no call for half a minute.",
    )
    connection_idle_ms: ConnectionMilliseconds = Field(
        300_000,
        description="Longest time of a connection without a call, in milliseconds; then its client"
        " is told to leave, and connects again for its next call.",
    )
    connection_age_ms: ConnectionMilliseconds = Field(
        900_000,
        description="Age, a tenth more or less, at which a client is told to connect again, in"
        " milliseconds, so that clients find new replicas.",
    )
    connection_age_grace_ms: ConnectionMilliseconds = Field(
        3_600_000,
        description="Longest time that calls of a connection go on after its age, in milliseconds."
        " An upload or a generation that is cut off can be resumed.",
    )

    rate_limit_end_users: RateLimits = Field(
        "100/minute",
        description="Rate limit of an end-user token, counted for each rate class of methods:"
        " reads, changes, and till (the calls of a checkout).",
    )
    rate_limit_services: RateLimits = Field(
        "none", description="Rate limit of any other token, counted in the same way."
    )
    rate_limit_peers: RateLimits = Field(
        "100/minute",
        description="Rate limit of an address without a token (an IPv6 address counts as its /64),"
        " counted in the same way. Loopback addresses are limited only when this is set"
        " explicitly.",
    )
    guess_limit_end_users: RateLimits = Field(
        "10/minute;100/day",
        description="Limit of unknown codes of an end user, who is the subject of a token or the"
        " user_id of a call. Beyond it, all look-ups of codes by that user are RATE_LIMITED until"
        " the period ends.",
    )
    guess_limit_services: RateLimits = Field(
        "none",
        description="Limit of unknown codes of a token that is not an end user's, over all its"
        " users.",
    )
    guess_limit_peers: RateLimits = Field(
        "10/minute;100/day",
        description="Limit of unknown codes of an address without a token. Look-ups from loopback"
        " without a token count, also against the user, only when this is set explicitly.",
    )

    database_url: DatabaseUrl = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}DATABASE_URL", "DATABASE_URL"),
        description="URL of PostgreSQL. Also read from DATABASE_URL. When unset, coupon-service dev"
        " starts a server of its own, and coupon-service serve refuses to start.",
    )
    replica_url: DatabaseUrl = Field(
        default=None,
        description="URL of a read replica (a streaming standby) of PostgreSQL. It answers"
        " ListAuditEvents, ListRefusals, GetCouponBookStats and ExportCodes while it is near"
        " enough, the primary everything else. When unset, the primary answers all.",
    )
    replica_max_lag_ms: Annotated[int, Field(ge=20, le=3_600_000)] = Field(
        1_000,
        description="How far an answer of the read replica may be behind, in milliseconds. When it"
        " is further behind, or away, the primary answers.",
    )
    shards: Annotated[int, Field(ge=1, le=SHARDS_MAX)] = Field(
        1,
        description="Shards, each a PostgreSQL schema with all tables (coupon_00, coupon_01, ...),"
        " that businesses are spread over. It cannot be changed once coupon-service migrate up has"
        " made them. 1: no shards, the tables are in the schema of the connection.",
    )
    shard_urls: DatabaseUrls = Field(
        default=None,
        description="URLs of the PostgreSQL servers of the shards, separated by commas, in the"
        " order of the shards: each has as many shards as the others, so that their number divides"
        " COUPON_SHARDS. When unset, all shards are in COUPON_DATABASE_URL.",
    )
    shard_connections_max: Annotated[int, Field(ge=1, le=100_000)] = Field(
        500,
        description="Connections to PostgreSQL of a replica with several shards in all at most:"
        " settings that could come to more are refused. They come to COUPON_WORKERS x COUPON_SHARDS"
        " x (COUPON_POOL_MAX_SIZE + 1).",
    )
    pool_min_size: Count = Field(
        2, description="Connections to PostgreSQL that each worker keeps open, for each shard."
    )
    pool_max_size: Count = Field(
        6,
        description="Connections to PostgreSQL in each worker at most, for each shard, beside one"
        " for bulk work.",
    )
    pool_timeout_ms: Milliseconds = Field(
        1_000, description="Longest wait for a free connection, in milliseconds."
    )
    lock_timeout_ms: Milliseconds = Field(
        1_500,
        description="Longest wait for a row lock, in milliseconds. After it the transaction is"
        " retried.",
    )
    statement_timeout_ms: Milliseconds = Field(
        3_000, description="Longest time of one SQL statement, in milliseconds."
    )
    idle_in_transaction_timeout_ms: Milliseconds = Field(
        5_000,
        description="Longest idle time of an open transaction before PostgreSQL terminates it, in"
        " milliseconds.",
    )
    tcp_user_timeout_ms: Milliseconds = Field(
        5_000,
        description="Longest time for which sent data may stay unacknowledged before a connection"
        " to PostgreSQL counts as dead, in milliseconds.",
    )
    session_parameters: Literal["startup", "role", "transaction"] = Field(
        "startup",
        description="How a session with PostgreSQL gets its timeouts and the planner's settings."
        " startup: when it connects. Behind a pooler in transaction mode, which does not pass them"
        " on, role: from the role, by what coupon-service migrate grants prints, or transaction:"
        " with each transaction, which takes two round trips more for each read.",
    )
    prepared_statements: bool = Field(
        default=True,
        description="Whether statements are prepared once for each connection. Disable it behind a"
        " pooler in transaction mode that does not keep them (PgBouncer before 1.21, or with"
        " max_prepared_statements=0).",
    )
    transaction_attempts_max: Annotated[int, Field(ge=1, le=10)] = Field(
        3,
        description="Attempts of a transaction that fails on deadlocks, lock timeouts and the"
        " like.",
    )

    batch_max_size: Annotated[int, Field(ge=1, le=10_000)] = Field(
        256, description="Commands in one batch, which is one transaction, at most."
    )
    batch_max_wait_ms: Annotated[int, Field(ge=0, le=1_000)] = Field(
        50,
        description="Longest linger of a busy worker for more commands in a batch, in milliseconds:"
        " more than 6, or 0 for none. An idle worker only yields a few times to its event loop.",
    )
    batches_in_flight: Count = Field(
        1,
        description="Batches of single commands in flight in each worker. More than one helps where"
        " PostgreSQL is far away.",
    )
    queue_max_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000,
        description="Commands queued in each worker at most; more are refused with OVERLOADED.",
    )

    redis_url: RedisUrl = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}REDIS_URL", "REDIS_URL"),
        description="URL of Redis. Also read from REDIS_URL. When unset, the same as for"
        " PostgreSQL.",
    )
    redis_timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        50, description="Longest wait for Redis to connect or to answer, in milliseconds."
    )
    default_business: BusinessId = Field(
        "",
        description="Business whose codes are meant by calls that name none: neither by their"
        " token, nor by business_id, nor by book_id. When unset, they mean the code of any"
        " business.",
    )
    lock_ttl_default_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        60_000,
        description="Lifetime of a lock for which neither caller nor book names one, in"
        " milliseconds.",
    )
    lock_ttl_max_ms: Annotated[int, Field(ge=1_000, le=86_400_000)] = Field(
        900_000,
        description="Longest lifetime for which a lock is granted or extended, in milliseconds.",
    )
    lock_extensions_max: Annotated[int, Field(ge=0, le=1_000)] = Field(
        3, description="Extensions of one lock at most."
    )
    locks_per_user_max: Count = Field(
        5, description="Live locks of one user of a business at most."
    )
    clock_tolerance_ms: Annotated[int, Field(ge=0, le=60_000)] = Field(
        1_000,
        description="How far the clocks of the machines may differ, in milliseconds. Redis keeps a"
        " lock longer than its token is valid, by this and the statement timeout.",
    )
    lock_token_secret: TokenSecret = Field(
        default=None,
        description="Secret that signs lock tokens and page tokens, the same on all replicas. When"
        " unset, coupon-service dev makes one and keeps it in its data folder, and coupon-service"
        " serve refuses to start.",
    )
    lock_token_secret_previous: TokenSecret = Field(
        default=None,
        description="The secret before the current one. Tokens signed with it stay valid. After a"
        " change, keep it set for the longest lifetime of a lock.",
    )
    erasure_secret: TokenSecret = Field(
        default=None,
        description="Secret of the pseudonyms that stand for erased users, the same on all"
        " replicas. Without it limits that they have used do not bind when they come again. When"
        " unset, coupon-service dev makes one and keeps it in its data folder, and coupon-service"
        " serve refuses EraseUser.",
    )
    erasure_secret_previous: TokenSecret = Field(
        default=None,
        description="The secret before the current one. Who was erased with it is still found. Once"
        " all books of that time are closed, remove it.",
    )
    sweep_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        5_000,
        description="Interval between two sweeps of expired locks, and of codes that go back to the"
        " pool, in milliseconds.",
    )
    seal_interval_ms: Annotated[int, Field(ge=0, le=3_600_000)] = Field(
        10_000,
        description="Interval between two times that what is new in the ledger is sealed, so that"
        " whoever changes it later is found, in milliseconds. 0: never.",
    )
    stock_interval_ms: Annotated[int, Field(ge=100, le=3_600_000)] = Field(
        5_000,
        description="Interval between two checks of what books with a low_threshold have left, in"
        " milliseconds.",
    )

    book_series_max: Annotated[int, Field(ge=0, le=10_000)] = Field(
        100,
        description="Books with a low_threshold that have gauges of their own in the metrics:"
        " books that run low first, then used up ones.",
    )
    refusals_kept_days: Annotated[int, Field(ge=0, le=3_650)] = Field(
        30,
        description="For how many days refused attempts are kept for ListRefusals. 0 keeps none,"
        " and deletes those that there are.",
    )
    refusals_unknown_codes: bool = Field(
        default=True,
        description="Whether attempts on codes that do not exist are kept as well: of such a code a"
        " mask and a keyed hash.",
    )
    drain_grace_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        5_000,
        description="Time between NOT_SERVING and the close of the port on SIGTERM, in"
        " milliseconds, so that load balancers notice.",
    )
    shutdown_timeout_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        10_000,
        description="Longest time for calls in flight to finish on shutdown, in milliseconds.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="json: one object for each line. console: coloured text. auto: console on a"
        " terminal, json elsewhere.",
    )
    tracing: bool = Field(
        default=False,
        description="Enables OpenTelemetry traces, exported by OTLP over gRPC. The OTEL_* variables"
        " choose the collector and the sampling. Needs coupon-service[tracing].",
    )
    pid_file: Path | None = Field(
        default=None,
        description="File by which coupon-service reload and restart find the service, locked while"
        " it runs. When unset, coupon-service dev has one in its data folder, coupon-service serve"
        " none.",
    )
    data_dir: Path = Field(
        Path(".data"),
        description="Folder of the servers and the secrets of coupon-service dev.",
    )

    @property
    def database_urls(self) -> list[str]:
        """Where the shards are, in order; empty where no URL is set."""
        if self.shard_urls is not None:
            return split_urls(self.shard_urls.get_secret_value())
        return [self.database_url.get_secret_value()] if self.database_url is not None else []

    @property
    def database_connections_max(self) -> int:
        """How many connections to PostgreSQL the workers may have open, all together."""
        return self.workers * self.shards * (self.pool_max_size + 1)

    @property
    def lock_grace_ms(self) -> int:
        """How long Redis keeps a lock after its token expired: a redemption that was admitted in
        time has completed by then."""
        return self.statement_timeout_ms + self.clock_tolerance_ms

    @property
    def open_without_auth(self) -> bool:
        """Whether other machines can reach the service without authentication."""
        return self.auth == "none" and not _is_loopback(self.host)

    @property
    def peers_limited(self) -> bool:
        """Whether calls without a token are rate-limited."""
        explicit = "rate_limit_peers" in self.model_fields_set
        return self.rate_limit_peers != "none" and (explicit or self.open_without_auth)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
