"""Where a generation goes on is found in a few look-ups, however many chunks it has."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any, cast

import pytest

from coupon_service.model import EventType
from coupon_service.store.bulk.generation import _committed_chunks

NO_CONNECTION = cast("Any", None)


class Committed:
    """A request of which so many chunks are committed."""

    def __init__(self, committed: int) -> None:
        self._committed = committed
        self.looked_up: list[int] = []

    async def recorded(self, _: Any, event: EventType, chunk: int) -> object | None:
        assert event is EventType.CODES_GENERATED
        self.looked_up.append(chunk)
        return object() if chunk < self._committed else None


@pytest.mark.parametrize("count", [1, 2, 3, 50, 50_000])
async def test_it_goes_on_behind_the_last_chunk(count: int) -> None:
    for committed in {0, 1, 2, count // 3, count - 1, count}:
        if committed <= count:
            request = Committed(committed)
            found = await _committed_chunks(NO_CONNECTION, cast("Any", request), count)
            assert found == committed
            assert len(request.looked_up) <= 17


async def test_a_new_generation_looks_for_its_first_chunk_only() -> None:
    request = Committed(0)
    await _committed_chunks(NO_CONNECTION, cast("Any", request), 50_000)
    assert request.looked_up == [0]
