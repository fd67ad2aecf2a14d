"""The answer to a chunk of an import is made without keeping other calls waiting."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio

import pytest

from coupon_service.rpc.servicers import codes as servicer
from coupon_service.store.bulk.upload_rows import ImportResult, Rejection


async def test_other_calls_go_on_while_a_long_answer_is_made() -> None:
    rejected = [(index, Rejection.EXISTING) for index in range(10_000)]
    answer = asyncio.create_task(
        servicer._import_message(1, ImportResult(0, 0, 10_000, 0, rejected))
    )
    turns = 0
    while not answer.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10_000 / servicer.ROWS_STEP
    assert [row.index for row in (await answer).rejected_rows] == list(range(10_000))


@pytest.mark.parametrize("count", [0, 1, servicer.ROWS_STEP, servicer.ROWS_STEP + 1])
async def test_all_rows_are_in_the_answer(count: int) -> None:
    rejected = [(index, Rejection.MALFORMED) for index in range(count)]
    message = await servicer._import_message(2, ImportResult(0, 0, 0, count, rejected))
    assert [row.index for row in message.rejected_rows] == list(range(count))
