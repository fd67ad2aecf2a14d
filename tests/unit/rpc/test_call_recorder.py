"""What is logged and counted of calls that have ended, and when."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture
from support.handler_server import Observer

from coupon_service.batching import BatchingSettings
from coupon_service.errors import Contention, CouponServiceError
from coupon_service.rpc.call_recorder import CallRecorder
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.status import Internal
from coupon_service.telemetry.logs import EACH

BATCHING = BatchingSettings()
LONG_ENOUGH_S = 2 * BATCHING.access_log_delay_ms / 1_000
OK = ("Service/Method", "OK", "")


class Recorded:
    """Calls that end, and what is logged and counted of them."""

    def __init__(self) -> None:
        self._capture = LogCapture()
        log: Any = structlog.wrap_logger(None, processors=[self._capture])
        self.counted: list[tuple[str, str, str]] = []
        self.calls = CallRecorder(log, Observer(self.counted), None, BATCHING)

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


async def test_calls_that_end_at_about_the_same_time_are_flushed_together() -> None:
    recorded = Recorded()
    for request_id in ("a", "b", "c"):
        recorded.end(request_id)
    assert (recorded.logged, recorded.counted) == ([], [])
    await asyncio.sleep(LONG_ENOUGH_S)
    assert recorded.logged == [("info", "a", "b", "c")]
    assert recorded.counted == [OK] * 3
    recorded.end("d")
    await asyncio.sleep(LONG_ENOUGH_S)
    assert recorded.logged[1:] == [("info", "d")]


async def test_the_last_calls_are_flushed_when_there_will_be_no_more() -> None:
    recorded = Recorded()
    recorded.end("a")
    recorded.calls.flush()
    assert recorded.logged == [("info", "a")]
    await asyncio.sleep(LONG_ENOUGH_S)
    assert recorded.logged == [("info", "a")]
    assert recorded.counted == [OK]


@pytest.mark.parametrize(("error", "level"), [(Internal("e1"), "error"), (Contention(), "warning")])
async def test_an_error_whose_cause_is_logged_is_flushed_at_once_and_in_order(
    error: CouponServiceError, level: str
) -> None:
    recorded = Recorded()
    recorded.end("before")
    error.__cause__ = ConnectionError("lost")
    recorded.end("failed", error)
    recorded.end("after")
    assert recorded.logged == [("info", "before"), (level, "failed")]
    assert recorded.counted == [OK] * 2
    recorded.calls.flush()
    assert recorded.logged[2:] == [("info", "after")]
