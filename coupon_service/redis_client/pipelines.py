"""Commands that many callers give at the same moment share one pipeline to a Redis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from coupon_service.batching import BATCHING_DEFAULTS, BatchingSettings, MicroBatcher
from coupon_service.errors import LocksUnavailable
from coupon_service.redis_client.exchange import RedisCommand, RedisExchange, accepted
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from coupon_service.telemetry.tracing import Tracer


@dataclass(frozen=True, slots=True)
class _Call:
    """Commands of one caller, which stay together."""

    commands: tuple[RedisCommand, ...]
    deadline: None = None

    @property
    def size(self) -> int:
        return len(self.commands)


class Pipelines:
    """Sends commands to Redis, one pipeline at a time; what comes meanwhile fills the next one.

    A caller's cancellation never reaches the connection. Calls whose caller has gone before they
    were sent are left out.
    """

    def __init__(
        self,
        client: Redis,
        sources: Mapping[str, str],
        timeout_ms: int,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        batching: BatchingSettings = BATCHING_DEFAULTS,
    ) -> None:
        """``sources``: the text of each script by its SHA-1."""
        self.commands_max = batching.pipeline_max_size
        """Commands that share a pipeline; more of one call are sent, and hold up the others."""
        self._exchange = RedisExchange(client, sources, timeout_ms, metrics)
        self._tracer = tracer
        self._batcher = MicroBatcher(self._send, batching.pipelines)
        self._failed_s = -math.inf
        """When the pipeline before failed, in seconds of time.perf_counter."""

    async def run(self, *commands: RedisCommand) -> Sequence[Any]:
        """As `replies`. Raises LocksUnavailable also when Redis refuses one of the commands."""
        return accepted(await self.replies(*commands))

    async def replies(self, *commands: RedisCommand) -> Sequence[Any]:
        """The replies to ``commands``, which go out together and in this order; the error of those
        that Redis refuses.

        Raises LocksUnavailable when Redis cannot be reached or is silent for ``timeout_ms`` (which
        takes twice as long at most, behind others who wait). What was sent may then have been
        carried out or not.
        """
        if self._tracer is None:
            return await self._batcher.submit(_Call(commands))
        return await self._tracer.around("redis", "redis", self._batcher.submit(_Call(commands)))

    async def close(self) -> None:
        """Waits for what is on its way, then closes the connections."""
        await self._batcher.drain()
        await self._exchange.close()

    async def _send(self, calls: Sequence[_Call]) -> list[list[Any]]:
        try:
            replies = await self._exchange.replies(*[it for call in calls for it in call.commands])
        except LocksUnavailable as error:
            # One may be bad luck. After a second, who waited all the time need not wait on.
            self._batcher.fail_queued(error, self._failed_s)
            self._failed_s = perf_counter()
            raise
        self._failed_s = -math.inf
        each = iter(replies)
        return [list(islice(each, call.size)) for call in calls]
