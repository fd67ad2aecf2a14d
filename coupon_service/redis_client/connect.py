"""From the URL of Redis to what sends commands to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from coupon_service.batching import BATCHING_DEFAULTS, BatchingSettings
from coupon_service.redis_client.clients import connect
from coupon_service.redis_client.cluster import ClusterPipelines
from coupon_service.redis_client.exchange import RedisExchange
from coupon_service.redis_client.pipelines import Pipelines
from coupon_service.settings.redis_url import Topology, read_redis_url
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

AnyPipelines: TypeAlias = Pipelines | ClusterPipelines


def pipelines_to(
    url: str,
    sources: Mapping[str, str],
    timeout_ms: int,
    metrics: Metrics | None = None,
    tracer: Tracer | None = None,
    batching: BatchingSettings = BATCHING_DEFAULTS,
) -> AnyPipelines:
    """Pipelines to the Redis of a URL, which connect when they are used. Raises ValueError."""
    read = read_redis_url(url)
    if read.topology is Topology.CLUSTER:
        return ClusterPipelines(read, sources, timeout_ms, metrics, tracer, batching)
    client = connect(read, timeout_ms)
    return Pipelines(client, sources, timeout_ms, metrics, tracer, batching)


def exchange_with(
    url: str,
    sources: Mapping[str, str],
    timeout_ms: int,
    batching: BatchingSettings = BATCHING_DEFAULTS,
) -> RedisExchange | ClusterPipelines:
    """As `pipelines_to`, for one who joins commands by itself; where it can, without a batcher."""
    read = read_redis_url(url)
    if read.topology is Topology.CLUSTER:
        return ClusterPipelines(read, sources, timeout_ms, batching=batching)
    return RedisExchange(connect(read, timeout_ms), sources, timeout_ms)
