"""Clients for tests that look at what is in Redis, one server or a cluster."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any, cast

import redis
import redis.asyncio

from coupon_service.settings.redis_url import Topology, read_redis_url


def flush(url: str) -> None:
    """Delete all keys."""
    read = read_redis_url(url)
    if read.topology is Topology.CLUSTER:
        with redis.RedisCluster.from_url(read.plain) as cluster:
            cast("Any", cluster).flushall(target_nodes=redis.RedisCluster.PRIMARIES)
        return
    with redis.Redis.from_url(read.plain) as client:
        client.flushdb()


def looking_at(url: str) -> redis.asyncio.Redis:
    """A client; that of a cluster has the same methods."""
    read = read_redis_url(url)
    cluster = read.topology is Topology.CLUSTER
    kind = _Cluster if cluster else redis.asyncio.Redis
    return cast("redis.asyncio.Redis", kind.from_url(read.plain, decode_responses=True))


class _Cluster(redis.asyncio.RedisCluster):
    async def keys(self, pattern: Any = "*", **_: Any) -> Any:
        """Of all masters, not of one."""
        return await cast("Any", super()).keys(pattern, target_nodes=self.PRIMARIES)
