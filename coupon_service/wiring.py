"""Settings of the service → what each part needs of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coupon_service.batching import BatchingSettings
from coupon_service.locks.limits import LockLimits
from coupon_service.model.normalization import canonical_id
from coupon_service.model.pseudonyms import Pseudonyms
from coupon_service.ratelimit.callers import CallerLimits
from coupon_service.rpc.checkout_streams import CheckoutStreamSettings
from coupon_service.rpc.handler import RpcHandlerSettings
from coupon_service.rpc.open_streams import OpenStreams
from coupon_service.settings import Settings
from coupon_service.store.sessions import (
    APPLICATION_NAME,
    ONLY_SHARD,
    DatabaseSettings,
    ShardPlace,
)

BULK_WAIT_MS: Final = 20_000
"""Longest wait of bulk work for its connection."""

BULK_IDLE_MS: Final = 2_000
"""Time without bulk work after which its connection is closed."""

BULK_SLOW_MS: Final = 30_000
"""A chunk that takes longer is logged; it waits for others, and rests, while they are at work."""


def batching_settings(settings: Settings) -> BatchingSettings:
    """Of everything that is done for many callers at once. Raises BatchingError."""
    return BatchingSettings(
        batch_max_size=settings.batch_max_size,
        batch_max_wait_ms=settings.batch_max_wait_ms,
        batches_in_flight=settings.batches_in_flight,
        queue_max_size=settings.queue_max_size,
    )


def shard_places(settings: Settings) -> list[tuple[str, ShardPlace]]:
    """The URL and the place of each shard, in order. Each URL has as many of them as the others."""
    urls, shards = settings.database_urls, settings.shards
    return [(urls[it * len(urls) // shards], ShardPlace(it, shards)) for it in range(shards)]


def database_settings(
    url: str, settings: Settings, shard: ShardPlace = ONLY_SHARD
) -> DatabaseSettings:
    """Of the pool and its transactions."""
    return DatabaseSettings(
        url=url,
        pool_min_size=settings.pool_min_size,
        pool_max_size=settings.pool_max_size,
        pool_timeout_ms=settings.pool_timeout_ms,
        lock_timeout_ms=settings.lock_timeout_ms,
        statement_timeout_ms=settings.statement_timeout_ms,
        idle_in_transaction_timeout_ms=settings.idle_in_transaction_timeout_ms,
        tcp_user_timeout_ms=settings.tcp_user_timeout_ms,
        attempts_max=settings.transaction_attempts_max,
        # One connection is for large calls, one for previews, one for lookups; those left over by
        # these and the batches of commands are for what is done for one caller.
        unbatched_max=max(1, settings.pool_max_size - settings.batches_in_flight - 3),
        parameters_from=settings.session_parameters,
        prepared_statements=settings.prepared_statements,
        shard=shard,
        known_urls=tuple(settings.database_urls) if shard.schema else (),
    )


def bulk_database_settings(
    url: str, settings: Settings, shard: ShardPlace = ONLY_SHARD
) -> DatabaseSettings:
    """Of the connection for bulk work, whose transactions take longer than others."""
    return replace(
        database_settings(url, settings, shard),
        application_name=f"{APPLICATION_NAME} bulk",
        pool_min_size=0,
        pool_max_size=1,
        pool_timeout_ms=BULK_WAIT_MS,
        unbatched_max=1,
        slow_ms=BULK_SLOW_MS,
        idle_ms=BULK_IDLE_MS,
    )


REPLICA_WAIT_MS: Final = 250
"""Longest wait for a connection to the read replica: the primary answers in its place."""

REPLICA_STATEMENT_MS: Final = 1_500
REPLICA_SILENCE_MS: Final = 500
"""After these two the primary is asked, which still has time until the deadline of the call."""

REPLICA_CONNECTIONS: Final = 2


def replica_settings(url: str, settings: Settings) -> DatabaseSettings:
    """Of the connections to the read replica: tried once, since the primary can answer as well."""
    return replace(
        database_settings(url, settings),
        pool_min_size=1,
        pool_max_size=REPLICA_CONNECTIONS + 1,  # one is for probes
        pool_timeout_ms=min(REPLICA_WAIT_MS, settings.pool_timeout_ms),
        unbatched_max=REPLICA_CONNECTIONS,
        statement_timeout_ms=min(REPLICA_STATEMENT_MS, settings.statement_timeout_ms),
        tcp_user_timeout_ms=min(REPLICA_SILENCE_MS, settings.tcp_user_timeout_ms),
        attempts_max=1,
    )


def replica_bulk_settings(url: str, settings: Settings) -> DatabaseSettings:
    """Of the connection for exports from the read replica."""
    return replace(
        bulk_database_settings(url, settings), pool_timeout_ms=REPLICA_WAIT_MS, attempts_max=1
    )


def handler_settings(settings: Settings) -> RpcHandlerSettings:
    """Bounds of the calls. Raises BatchingError."""
    return RpcHandlerSettings(
        default_deadline_ms=settings.default_deadline_ms,
        request_max_bytes=settings.request_max_bytes,
        import_request_max_bytes=settings.import_request_max_bytes,
        stream_idle_ms=settings.stream_idle_ms,
        calls_max=settings.calls_max,
        connections_max=settings.connections_max,
        default_business=canonical_id(settings.default_business),
        batching=batching_settings(settings),
    )


def stream_settings(settings: Settings) -> CheckoutStreamSettings:
    """Bounds of Checkout streams."""
    return CheckoutStreamSettings(
        streams_max=settings.streams_max,
        streams_of_connection_max=settings.streams_of_connection_max,
        operations_max=settings.stream_operations_max,
        # gRPC would cut what is left of an old connection, after the grace.
        age_max_ms=min(settings.connection_age_ms, settings.connection_age_grace_ms),
        idle_ms=settings.stream_idle_ms,
        message_max_bytes=settings.import_request_max_bytes,
        request_max_bytes=settings.request_max_bytes,
    )


def watchers(settings: Settings) -> OpenStreams:
    """The WatchAuditEvents streams of a worker."""
    return OpenStreams(
        settings.watchers_max,
        settings.watchers_of_caller_max,
        min(settings.connection_age_ms, settings.connection_age_grace_ms),
        "caller",
    )


def call_limits(settings: Settings) -> CallerLimits | None:
    """How often callers may call. None where nobody has a limit, so that nobody pays for it."""
    if settings.auth == "none" and not settings.peers_limited:
        return None
    return CallerLimits(
        end_users=settings.rate_limit_end_users,
        services=settings.rate_limit_services,
        peers=settings.rate_limit_peers,
        loopback="rate_limit_peers" in settings.model_fields_set,
    )


def guess_limits(settings: Settings) -> CallerLimits:
    """How many unknown codes callers may look up."""
    return CallerLimits(
        end_users=settings.guess_limit_end_users,
        services=settings.guess_limit_services,
        peers=settings.guess_limit_peers,
        loopback="guess_limit_peers" in settings.model_fields_set,
    )


def lock_limits(settings: Settings) -> LockLimits:
    """How long locks live and how many a user has."""
    return LockLimits(
        ttl_default_ms=settings.lock_ttl_default_ms,
        ttl_max_ms=settings.lock_ttl_max_ms,
        grace_ms=settings.lock_grace_ms,
        extensions_max=settings.lock_extensions_max,
        locks_per_user_max=settings.locks_per_user_max,
    )


def token_secrets(settings: Settings) -> list[bytes]:
    """The secret that lock and page tokens are signed with, and others that are still good."""
    secrets = (settings.lock_token_secret, settings.lock_token_secret_previous)
    return [secret.get_secret_value().encode() for secret in secrets if secret is not None]


def pseudonyms(settings: Settings) -> Pseudonyms:
    """What stands for erased users; none where no secret is set."""
    secrets = (settings.erasure_secret, settings.erasure_secret_previous)
    return Pseudonyms([it.get_secret_value().encode() for it in secrets if it is not None])


def transient_ttl_ms(settings: Settings) -> int:
    """How long a redemption without a lock keeps its permit: as long as it can take."""
    return settings.default_deadline_ms + settings.statement_timeout_ms
