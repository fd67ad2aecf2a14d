"""What is told of calls that have ended, and when."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture
from support.handler_server import Observer

from coupon_service.errors import Contention, CouponServiceError
from coupon_service.rpc.call_recorder import TELL_AFTER_S, CallRecorder
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.status import Internal
from coupon_service.telemetry.logs import EACH

OK = ("Service/Method", "OK", "")


class Told:
    """Calls that end, and what is told of them."""

    def __init__(self) -> None:
        self._capture = LogCapture()
        log: Any = structlog.wrap_logger(None, processors=[self._capture])
        self.counted: list[tuple[str, str, str]] = []
        self.calls = CallRecorder(log, Observer(self.counted), None)

    def end(self, request_id: str, error: CouponServiceError | None = None) -> None:
        rpc = RequestContext(request_id=request_id)
        self.calls.add(*OK[:1], rpc, *OK[1:], perf_counter(), error, error)

    @property
    def logged(self) -> list[tuple[str, ...]]:
        """The request_ids of each event, and its level."""
        return [
            (entry["log_level"], *(it["request_id"] for it in entry.get(EACH, (entry,))))
            for entry in self._capture.entries
        ]


async def test_those_of_a_moment_are_told_of_together() -> None:
    told = Told()
    for request_id in ("a", "b", "c"):
        told.end(request_id)
    assert (told.logged, told.counted) == ([], [])
    await asyncio.sleep(2 * TELL_AFTER_S)
    assert told.logged == [("info", "a", "b", "c")]
    assert told.counted == [OK] * 3
    told.end("d")
    await asyncio.sleep(2 * TELL_AFTER_S)
    assert told.logged[1:] == [("info", "d")]


async def test_the_last_ones_are_told_of_when_there_will_be_no_more() -> None:
    told = Told()
    told.end("a")
    told.calls.tell()
    assert told.logged == [("info", "a")]
    await asyncio.sleep(2 * TELL_AFTER_S)
    assert told.logged == [("info", "a")]
    assert told.counted == [OK]


@pytest.mark.parametrize(("error", "level"), [(Internal("e1"), "error"), (Contention(), "warning")])
async def test_an_error_with_a_story_is_told_at_once_and_in_order(
    error: CouponServiceError, level: str
) -> None:
    told = Told()
    told.end("before")
    error.__cause__ = ConnectionError("lost")
    told.end("failed", error)
    told.end("after")
    assert told.logged == [("info", "before"), (level, "failed")]
    assert told.counted == [OK] * 2
    told.calls.tell()
    assert told.logged[2:] == [("info", "after")]
