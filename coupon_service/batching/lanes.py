"""Small and large calls side by side."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from coupon_service.batching.batcher import MicroBatcher
from coupon_service.batching.lazy import LazyCommand
from coupon_service.errors import CouponServiceError
from coupon_service.model import CommandGroup, Outcome


class CommandLanes:
    """Takes single commands and large groups, so that a call of a thousand holds up no others.

    `bulk` carries out the groups of several commands, in parts of `part_size`.
    """

    def __init__(
        self,
        single: MicroBatcher[CommandGroup, list[Outcome]],
        bulk: MicroBatcher[CommandGroup, list[Outcome]],
        part_size: int,
    ) -> None:
        self._single = single
        self._bulk = bulk
        self._part_size = part_size

    @property
    def is_idle(self) -> bool:
        """Whether no single commands wait or are carried out."""
        return self._single.is_idle

    def submit(self, group: CommandGroup | LazyCommand[Any]) -> Awaitable[list[Outcome]]:
        """As MicroBatcher.submit. A group that is not atomic may be carried out in parts; the
        commands of a part that failed then have its error for an outcome, unless all parts failed
        alike: the error of one part does not say what became of another.
        """
        if isinstance(group, LazyCommand) or group.size == 1:
            return self._single.submit(group)
        if group.atomic:
            return self._bulk.submit(group)
        return self._submit_parts(group)

    def submit_joined(self, group: CommandGroup) -> Awaitable[list[Outcome]]:
        """As MicroBatcher.submit, for commands of several small calls."""
        return self._single.submit(group)

    async def _submit_parts(self, group: CommandGroup) -> list[Outcome]:
        parts = [
            CommandGroup(group.commands[start : start + self._part_size])
            for start in range(0, group.size, self._part_size)
        ]
        answers = await self._bulk.submit_all(parts)
        all_failed_alike = len({type(it) for it in answers}) == 1
        outcomes: list[Outcome] = []
        for part, answer in zip(parts, answers, strict=True):
            if not isinstance(answer, BaseException):
                outcomes += answer
            elif all_failed_alike or not isinstance(answer, CouponServiceError):
                raise answer
            else:
                outcomes += [answer] * part.size
        return outcomes

    async def drain(self) -> None:
        """Returns when everything that was submitted has been carried out."""
        await self._bulk.drain()
        await self._single.drain()
