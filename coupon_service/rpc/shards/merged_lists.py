"""Lists over all businesses: the pages of the shards, merged in their order.

A page token is where a page ends, as the key of its last row, by which all shards sort: each of
them goes on after it. So a token of one shard would do as well, and none knows of shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.convert.values import from_timestamp
from coupon_service.rpc.paging import PageTokens, Position, page_within_bounds
from coupon_service.store.keyset import time_position

Key = tuple[datetime, Any]
"""What a list is sorted by, the greatest first: a time, and the id or code of a row."""


@dataclass(frozen=True, slots=True)
class MergedList:
    """A list whose rows are sorted by a time and an id, or a code, the newest first.

    `rows`: the field of the answer; `key`: of a row; `id_of`: of the second text of a position.
    """

    rows: str
    key: Callable[[Any], Key]
    id_of: Callable[[str], UUID | str] = UUID

    async def answer(
        self,
        behaviors: Iterable[Callable[[Any, Any], Awaitable[Any]]],
        request: Any,
        context: Any,
        tokens: PageTokens,
    ) -> Any:
        """A page of the rows of all shards."""
        answers: list[Any] = await asyncio.gather(*(each(request, context) for each in behaviors))
        size = Fields().page(request, tokens).size
        ends = [self._end(request, it, tokens) for it in answers if it.next_page_token]
        keyed = [(self.key(row), row) for it in answers for row in getattr(it, self.rows)]
        keyed.sort(key=itemgetter(0), reverse=True)
        # Beyond its end a shard may have rows that come before those of the others.
        end = max(ends, default=None)
        within = keyed if end is None else [it for it in keyed if it[0] >= end]
        page = within[: _end_of_page(within, size)]
        if len(page) < len(within):
            end = page[-1][0]
        messages, position = page_within_bounds(
            page, itemgetter(1), end and time_position(*end), lambda it: time_position(*it[0])
        )
        token = tokens.token(request, position)
        fields: dict[str, Any] = {self.rows: messages, "next_page_token": token}
        return answers[0].__class__(**fields)

    def _end(self, request: Any, answer: Any, tokens: PageTokens) -> Key:
        """Up to where a shard has given all that it has."""
        asked = type(request)()
        asked.CopyFrom(request)
        asked.page_token = answer.next_page_token
        position: Position | None = tokens.position(asked)
        if position is None:
            raise AssertionError("a shard gave out an empty page token")
        time, last = position
        return datetime.fromisoformat(time), self.id_of(last)


def _end_of_page(rows: Sequence[tuple[Key, Any]], size: int) -> int:
    """How many rows are the page: rows of one key, of which each shard has one, stay together, as
    the next page begins after their key."""
    keys = [key for key, _ in rows]
    if size >= len(keys) or keys[size - 1] != keys[size]:
        return size
    return keys.index(keys[size]) or keys.count(keys[size])


BOOKS: Final = MergedList(
    "coupon_books", lambda it: (from_timestamp(it.create_time), UUID(it.book_id))
)
USER_COUPONS: Final = MergedList(
    "coupons",
    lambda it: (from_timestamp(it.assignment.assign_time), it.assignment.code),
    id_of=str,
)
REDEMPTIONS: Final = MergedList(
    "redemptions", lambda it: (from_timestamp(it.redeem_time), UUID(it.redemption_id))
)
REFUSALS: Final = MergedList(
    "refusals", lambda it: (from_timestamp(it.refuse_time), UUID(it.refusal_id))
)
EVENTS: Final = MergedList("events", lambda it: (from_timestamp(it.event_time), UUID(it.event_id)))
