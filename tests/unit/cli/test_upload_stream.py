"""An upload of the command line, against a server whose method is the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from support.handler_server import DEADLINE_MS, Running, running, until

from coupon_service.cli.client import BlockingService
from coupon_service.cli.rows import Chunk, Row
from coupon_service.cli.upload_stream import uploaded
from coupon_service.errors import InvalidStateTransition
from coupon_service.v1.coupon_code_service_pb2 import (
    ImportCodesRequest,
    ImportCodesResponse,
    ImportHeader,
)


async def answered(
    messages: AsyncIterator[ImportCodesRequest], _: object
) -> AsyncIterator[ImportCodesResponse]:
    async for message in messages:
        if message.HasField("chunk"):
            yield ImportCodesResponse(chunk_number=message.chunk.chunk_number)


def chunks(count: int) -> Iterator[Chunk]:
    for number in range(1, count + 1):
        yield Chunk(number, [Row(number, "A1B2", "A1B2")])


async def uploaded_to(
    run: Running, count: int, pause: Callable[[int], object] = bool, **header: Any
) -> list[int]:
    """The numbers of the chunks that were answered. `pause` is called before each chunk."""

    def upload() -> list[int]:
        given = (chunk for chunk in chunks(count) if [pause(chunk.number)])
        with grpc.insecure_channel(run.target) as channel:
            answers = uploaded(BlockingService(channel, ()), ImportHeader(**header), given)
            with closing(answers):
                return [answer.chunk_number for _, answer in answers]

    return await asyncio.to_thread(upload)


def pause_before_the_second(number: int) -> None:
    """For longer than the server waits for a message."""
    time.sleep(2 * DEADLINE_MS / 1000 if number == 2 else 0)


async def test_an_upload_to_its_end_is_a_call_that_ended_well() -> None:
    async with running(answered) as run:
        assert await uploaded_to(run, 3) == [1, 2, 3]
        assert (await run.line())["status"] == "OK"
    assert [status for _, status, _ in run.counted] == ["OK"]


async def test_what_comes_slowly_goes_on_in_another_stream() -> None:
    async with running(answered, deadline_ms=DEADLINE_MS) as run:
        assert await uploaded_to(run, 3, pause_before_the_second) == [1, 2, 3]
        await until(lambda: any(status == "OK" for _, status, _ in run.counted))
    *late, last = (status for _, status, _ in run.counted)
    assert (set(late), last) == ({"DEADLINE_EXCEEDED"}, "OK")


async def test_a_dry_run_is_not_gone_on_with() -> None:
    async with running(answered, deadline_ms=DEADLINE_MS) as run:
        with pytest.raises(grpc.RpcError):
            await uploaded_to(run, 2, pause_before_the_second, validate_only=True)


async def test_a_refusal_ends_an_upload() -> None:
    async def refused(messages: AsyncIterator[Any], _: object) -> AsyncIterator[Any]:
        async for _ in messages:
            raise InvalidStateTransition("The book is CLOSED.", state="CLOSED")
        yield ImportCodesResponse()

    async with running(refused) as run:
        with pytest.raises(grpc.RpcError):
            await uploaded_to(run, 2)
        assert (await run.line())["reason"] == "INVALID_STATE_TRANSITION"


async def test_an_upload_that_is_left_does_not_stay_open() -> None:
    async with running(answered) as run:

        def upload() -> None:
            with grpc.insecure_channel(run.target) as channel:
                answers = uploaded(BlockingService(channel, ()), ImportHeader(), chunks(3))
                with closing(answers):
                    next(answers)

        await asyncio.to_thread(upload)
        assert (await run.line())["method"] == "CouponCodeService/ImportCodes"
