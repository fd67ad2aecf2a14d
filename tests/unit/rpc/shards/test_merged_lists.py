"""Lists over all shards: what is in each of them, once and in order, page by page."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.shards.merged_lists import BOOKS, REDEMPTIONS
from coupon_service.store.keyset import page_of, time_and_id, time_position
from coupon_service.v1 import coupon_book_service_pb2 as books
from coupon_service.v1 import redemption_service_pb2 as redemptions

TOKENS = PageTokens([b"a secret of the tests, long enough"])
START = datetime(2026, 1, 1, tzinfo=UTC)

Row = tuple[datetime, UUID]


def shard_with(
    rows: Sequence[Row], ends_early: Callable[[], int] = lambda: 1_000
) -> Callable[[Any, Any], Awaitable[books.ListCouponBooksResponse]]:
    """A shard that lists its books as the store does; it looks at so many rows for a page."""

    async def answer(request: Any, _: Any) -> books.ListCouponBooksResponse:
        after = time_and_id(TOKENS.position(request))
        rest = sorted((it for it in rows if it < after), reverse=True)
        size = min(request.page_size, ends_early())
        page, end = page_of(rest, size, lambda it: time_position(*it))
        return books.ListCouponBooksResponse(
            coupon_books=[
                books.CouponBook(book_id=str(key), create_time=to_timestamp(time))
                for time, key in page
            ],
            next_page_token=TOKENS.token(request, end),
        )

    return answer


async def listed(shards: Sequence[Any], page_size: int) -> list[list[str]]:
    """The ids of all pages."""
    request = books.ListCouponBooksRequest(page_size=page_size)
    found: list[list[str]] = []
    while True:
        page = await BOOKS.answer(shards, request, None, TOKENS)
        found.append([it.book_id for it in page.coupon_books])
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def some_rows(chance: random.Random, count: int) -> list[Row]:
    """Rows, of which some are of the same time."""
    return [
        (START + timedelta(seconds=chance.randrange(count)), UUID(int=chance.getrandbits(128)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("page_size", [1, 3, 7, 100])
@pytest.mark.parametrize("seed", range(4))
async def test_each_row_is_listed_once_newest_first(page_size: int, seed: int) -> None:
    chance = random.Random(seed)
    shards = [some_rows(chance, chance.randrange(30)) for _ in range(4)]
    pages = await listed([shard_with(it) for it in shards], page_size)
    expected = sorted((it for each in shards for it in each), reverse=True)
    assert [it for page in pages for it in page] == [str(key) for _, key in expected]
    assert all(len(page) == page_size for page in pages[:-1])


@pytest.mark.parametrize("seed", range(6))
async def test_no_row_is_left_out_where_shards_end_their_pages_early(seed: int) -> None:
    chance = random.Random(seed)
    shards = [some_rows(chance, 20) for _ in range(3)]
    pages = await listed([shard_with(it, lambda: chance.randint(1, 6)) for it in shards], 5)
    expected = sorted((it for each in shards for it in each), reverse=True)
    assert [it for page in pages for it in page] == [str(key) for _, key in expected]


@pytest.mark.parametrize("page_size", [1, 2, 3, 5])
async def test_rows_of_one_key_in_several_shards_are_all_listed(page_size: int) -> None:
    rows = [(START + timedelta(seconds=n // 2), UUID(int=n)) for n in range(6)]
    pages = await listed([shard_with(rows), shard_with(rows[1:5]), shard_with(rows)], page_size)
    expected = sorted((*rows, *rows[1:5], *rows), reverse=True)
    assert [it for page in pages for it in page] == [str(key) for _, key in expected]


async def test_an_empty_list_is_one_empty_page() -> None:
    assert await listed([shard_with([]), shard_with([])], 5) == [[]]


async def test_a_page_has_no_more_than_a_client_takes() -> None:
    metadata = {"note": "x" * 4_000}

    async def shard(request: Any, _: Any) -> redemptions.ListRedemptionsResponse:
        rows = [
            redemptions.Redemption(
                redemption_id=str(UUID(int=number)), redeem_time=to_timestamp(START)
            )
            for number in range(1_000, 0, -1)
        ]
        for row in rows:
            row.metadata.update(metadata)
        return redemptions.ListRedemptionsResponse(redemptions=rows)

    request = redemptions.ListRedemptionsRequest(page_size=1_000, user_id="ann")
    page = await REDEMPTIONS.answer([shard, shard], request, None, TOKENS)
    assert page.next_page_token
    assert page.ByteSize() < 4 * 1024 * 1024
