"""What comes one by one and goes on together."""

from __future__ import annotations

import asyncio

from coupon_service.batching import FlushBuffer

SOON_MS = 300


async def test_what_comes_within_the_delay_is_flushed_together() -> None:
    flushed: list[list[str]] = []
    buffer = FlushBuffer[str](flushed.append, SOON_MS)
    for item in "abc":
        buffer.add(item)
        await asyncio.sleep(0)
    assert flushed == []
    while not flushed:
        await asyncio.sleep(0.001)
    buffer.add("d")
    while len(flushed) < 2:
        await asyncio.sleep(0.001)
    assert flushed == [["a", "b", "c"], ["d"]]


async def test_flushing_does_not_wait_and_nothing_is_flushed_twice() -> None:
    flushed: list[list[str]] = []
    buffer = FlushBuffer[str](flushed.append, SOON_MS)
    buffer.add("a")
    buffer.flush()
    buffer.flush()
    assert flushed == [["a"]]
    await asyncio.sleep(2 * SOON_MS / 1_000)
    assert flushed == [["a"]]
