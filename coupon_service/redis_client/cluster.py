"""Commands to a Redis Cluster: to each master its own pipelines, so that one that is down fails the
commands on its own slots, and delays no others.

redis-py (8.1) has a client for clusters. Its pipeline has one time limit for all nodes, fails as a
whole when a node cannot be reached, asks the nodes for the slots one after the other, and repeats
each redirected command by itself. So only its connections are used here.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError

from coupon_service.batching import BATCHING_DEFAULTS, BatchingSettings
from coupon_service.errors import LocksUnavailable
from coupon_service.redis_client.clients import NoAnswerError, connect_plain, first_answer
from coupon_service.redis_client.exchange import (
    REDIRECTIONS,
    RedisCommand,
    accepted,
    unavailable,
    with_source,
)
from coupon_service.redis_client.pipelines import Pipelines
from coupon_service.settings.redis_url import RedisUrl
from coupon_service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from coupon_service.telemetry.tracing import Tracer

Address: TypeAlias = tuple[str, int]

SLOTS: Final = 16_384

REDIRECTED_S_MAX: Final = 2.0
"""How long a command follows a slot that moves. A script whose keys are not all there has to wait
until the whole slot has moved."""

REDIRECTED_PAUSE_S: Final = 0.005
"""Between two attempts of a command that was redirected before."""

SPARED_S: Final = 0.25
"""How often a master that failed twice in a row is asked whether it answers again. Calls do not ask
it meanwhile: others wait in the same call."""

REFRESH_INTERVAL_S: Final = 0.25
"""Between two questions for the slots while a master cannot be reached."""


class NoMasterError(Exception):
    """No node serves the slot of a key."""


class _Failures(NamedTuple):
    """How often a master failed in a row, and how."""

    in_a_row: int
    error: LocksUnavailable


class ClusterPipelines:
    """As `Pipelines`, for a cluster: a command goes to the master that has the slot of its key.

    Commands of one caller for the same master stay together and in order.
    """

    def __init__(
        self,
        url: RedisUrl,
        sources: Mapping[str, str],
        timeout_ms: int,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        batching: BatchingSettings = BATCHING_DEFAULTS,
    ) -> None:
        """``sources``: the text of each script by its SHA-1."""
        self.commands_max = batching.pipeline_max_size
        """Commands that one call should have at most, in case that all are for one master."""
        self._url = url
        self._sources = sources
        self._timeout_ms = timeout_ms
        self._metrics = metrics
        self._tracer = tracer
        self._batching = batching
        self._servers: dict[Address, Pipelines] = {}
        self._masters: list[Address | None] = [None] * SLOTS
        self._failures: dict[Address, _Failures] = {}
        self._refreshed_s = -math.inf
        self._refreshing: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()

    async def run(self, *commands: RedisCommand) -> Sequence[Any]:
        """As `replies`. Raises LocksUnavailable also when one of the replies is an error."""
        return accepted(await self.replies(*commands))

    async def replies(self, *commands: RedisCommand) -> Sequence[Any]:
        """The replies to ``commands``; the error of those that Redis refuses, and LocksUnavailable
        for those whose master cannot be reached or is silent for ``timeout_ms``.

        Raises LocksUnavailable when no node can be reached at all.
        """
        if self._tracer is None:
            return await self._replies(commands)
        return await self._tracer.around("redis", "redis", self._replies(commands))

    async def close(self) -> None:
        """Waits for what is on its way, then closes the connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for watch in self._watching:
            watch.cancel()
        await asyncio.gather(*self._retiring, *(it.close() for it in self._servers.values()))

    async def masters(self) -> list[Address]:
        """All that serve slots. Raises LocksUnavailable when no node can be reached."""
        await self._ensure_slots()
        return sorted({it for it in self._masters if it is not None})

    def master_of(self, key: str) -> Address | None:
        """That which serves a key, as far as is known."""
        return self._masters[key_slot(key.encode())]

    def at(self, address: Address) -> Pipelines:
        """The pipelines to one node, which do not follow slots that move."""
        server = self._servers.get(address)
        if server is None:
            client = connect_plain(self._url.at(*address), self._timeout_ms)
            server = self._servers[address] = Pipelines(
                client, self._sources, self._timeout_ms, self._metrics, batching=self._batching
            )
        return server

    async def _replies(self, commands: Sequence[RedisCommand]) -> list[Any]:
        await self._ensure_slots()
        replies: list[Any] = [None] * len(commands)
        elsewhere: dict[int, Address] = {}
        todo: Sequence[int] = range(len(commands))
        until_s = perf_counter() + REDIRECTED_S_MAX
        pause_s = 0.0
        while True:
            by_master: defaultdict[Address | None, list[int]] = defaultdict(list)
            for i in todo:
                if i not in elsewhere:
                    by_master[self._master_for(commands[i])].append(i)
            await asyncio.gather(
                *(self._ask(it, each, commands, replies) for it, each in by_master.items()),
                *(self._ask_once(it, i, commands, replies) for i, it in elsewhere.items()),
            )
            todo = [i for i in todo if isinstance(replies[i], REDIRECTIONS)]
            if not todo:
                return replies
            if perf_counter() > until_s:
                for i in todo:
                    replies[i] = unavailable(replies[i])
                return replies
            elsewhere = {i: it for i in todo if (it := self.redirected(replies[i])) is not None}
            await asyncio.sleep(pause_s)
            pause_s = REDIRECTED_PAUSE_S

    async def _ask(
        self,
        address: Address | None,
        indices: Sequence[int],
        commands: Sequence[RedisCommand],
        replies: list[Any],
    ) -> None:
        """Puts the replies of the master of these commands in their places."""
        found: Sequence[Any]
        try:
            if address is None:
                raise unavailable(NoMasterError("no node serves the slot"))
            found = await self._unless_spared(address, [commands[i] for i in indices])
        except LocksUnavailable as error:
            self._refresh_soon()
            found = [error] * len(indices)
        for i, reply in zip(indices, found, strict=True):
            if isinstance(reply, ClusterDownError):
                self._refresh_soon()
                replies[i] = unavailable(reply)
            else:
                replies[i] = reply

    async def _unless_spared(
        self, address: Address, commands: Sequence[RedisCommand]
    ) -> Sequence[Any]:
        """The replies of a master. Raises LocksUnavailable, at once while it is spared."""
        failures = self._failures.get(address)
        if failures is not None and failures.in_a_row > 1:
            raise failures.error
        try:
            replies = await self.at(address).replies(*commands)
        except LocksUnavailable as error:
            self._failed(address, error)
            raise
        self._failures.pop(address, None)
        return replies

    def _failed(self, address: Address, error: LocksUnavailable) -> None:
        """Takes note of a failure of a master, and after a second one has it watched."""
        before = self._failures.get(address)
        self._failures[address] = _Failures(before.in_a_row + 1 if before else 1, error)
        if before is not None and before.in_a_row == 1:
            _keep(self._watching, self._watch(address))

    async def _watch(self, address: Address) -> None:
        """Ends the sparing of a master as soon as it answers."""
        while True:
            await asyncio.sleep(SPARED_S)
            if address not in self._failures:  # it is no master any more
                return
            with suppress(LocksUnavailable):
                await self.at(address).run(("PING",))
                self._failures.pop(address, None)

    async def _ask_once(
        self, address: Address, i: int, commands: Sequence[RedisCommand], replies: list[Any]
    ) -> None:
        """As `_ask`, of the node to which the slot of one command is just moving.

        A script is sent with its text, since only the next command is taken there.
        """
        command = with_source(commands[i], self._sources)
        try:
            _, replies[i] = await self.at(address).replies(("ASKING",), command)
        except LocksUnavailable as error:
            replies[i] = error

    def redirected(self, error: Exception) -> Address | None:
        """Where a command has to be asked once; otherwise the master of its slot is asked again."""
        match error:
            case MovedError():
                self._masters[error.slot_id] = self._named(error)
                self._refresh_soon()
            case AskError():
                return self._named(error)
            case _:  # some keys of a script have moved: it waits for the others
                pass
        return None

    def _named(self, error: AskError) -> Address:
        host, port = cast("Address", error.node_addr)
        return host or next(iter(self._servers))[0], port

    def _master_for(self, command: RedisCommand) -> Address | None:
        """Of the slot of its key; any for a command without one."""
        if len(command) == 1:
            return next((it for it in self._masters if it is not None), None)
        key = command[3] if command[0] == "EVALSHA" else command[1]
        return self.master_of(str(key))

    async def _ensure_slots(self) -> None:
        if self._refreshed_s == -math.inf:
            await self._refresh()

    def _refresh_soon(self) -> None:
        """Asks for the slots in the background, unless that is about to happen."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh_later())

    async def _refresh_later(self) -> None:
        await asyncio.sleep(max(0, self._refreshed_s + REFRESH_INTERVAL_S - perf_counter()))
        try:
            await self._refresh()
        except LocksUnavailable:
            self._refreshed_s = perf_counter()

    async def _refresh(self) -> None:
        """Asks all nodes for the slots and believes the first answer. Raises LocksUnavailable."""
        nodes = dict.fromkeys((*self._servers, *self._url.addresses))
        try:
            masters = await first_answer(map(self._slots_of, nodes))
        except NoAnswerError as error:
            raise unavailable(error) from error
        self._masters = masters
        self._refreshed_s = perf_counter()
        for gone in self._servers.keys() - masters - set(self._url.addresses):
            self._failures.pop(gone, None)
            _keep(self._retiring, self._servers.pop(gone).close())

    async def _slots_of(self, node: Address) -> list[Address | None]:
        """The master of each slot, as a node knows them."""
        (ranges,) = await self.at(node).run(("CLUSTER", "SLOTS"))
        masters: list[Address | None] = [None] * SLOTS
        for first, last, (host, port, *_), *_ in ranges:
            master = host or node[0], int(port)
            masters[first : last + 1] = [master] * (last + 1 - first)
        return masters


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Begins work that nobody awaits, and remembers it until it has ended."""
    task = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
