"""Commands that are read from their requests when their batch begins."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest
from support.batches import Transactions, group, micro_batcher, submit, turns

from coupon_service.batching import LazyCommand
from coupon_service.errors import DeadlineExceeded, FieldViolation, InvalidArgument
from coupon_service.model import SetCodeEnabled


def lazy(code: str, read: list[str], deadline: float | None = None) -> LazyCommand[SetCodeEnabled]:
    def command() -> SetCodeEnabled:
        read.append(code)
        if code.startswith("bad"):
            raise InvalidArgument((FieldViolation("code", code),))
        (command,) = group(code).commands
        assert isinstance(command, SetCodeEnabled)
        return command

    return LazyCommand(command, deadline)


async def test_requests_are_read_when_their_batch_begins() -> None:
    transactions = Transactions()
    transactions.open.clear()
    batcher = micro_batcher(transactions)
    read: list[str] = []
    lazies = [lazy(name, read) for name in ("a", "b", "c")]
    answers = submit(batcher, lazies[0])
    await turns()
    answers += submit(batcher, *lazies[1:])
    await turns()
    assert read == ["a"]
    transactions.open.set()
    await asyncio.gather(*answers)
    assert transactions.batches == [["a"], ["b", "c"]]
    assert [it.command.code for it in lazies] == ["a", "b", "c"]


async def test_a_bad_request_fails_its_caller_alone() -> None:
    transactions = Transactions()
    batcher = micro_batcher(transactions)
    read: list[str] = []
    lazies = [lazy(name, read) for name in ("a", "bad", "b")]
    good, bad, other = await asyncio.gather(*submit(batcher, *lazies), return_exceptions=True)
    assert isinstance(bad, InvalidArgument)
    assert isinstance(good, list)
    assert isinstance(other, list)
    assert transactions.batches == [["a", "b"]]
    bad, worse = await asyncio.gather(
        *submit(batcher, lazy("bad", read), lazy("bad too", read)), return_exceptions=True
    )
    assert isinstance(bad, InvalidArgument)
    assert isinstance(worse, InvalidArgument)
    assert transactions.batches == [["a", "b"]]


async def test_a_request_whose_deadline_has_passed_is_not_read() -> None:
    read: list[str] = []
    (answer,) = submit(micro_batcher(Transactions()), lazy("a", read, perf_counter() - 1))
    with pytest.raises(DeadlineExceeded):
        await answer
    assert read == []
