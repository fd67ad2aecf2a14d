"""Rate and guess limits on a real Redis, and callers of each kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from structlog.testing import LogCapture

from coupon_service.ratelimit.callers import CallerLimits
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.ratelimit.limiter import RateLimiter
from coupon_service.ratelimit.windows import Windows
from coupon_service.rpc.context import RequestContext

HERE = "ipv4:127.0.0.1:50000"
THERE = "ipv4:192.0.2.7:50000"

NO_LIMITS = CallerLimits(end_users="none", services="none", peers="none")

# A timeout that a reachable Redis never exceeds, however busy the machine is.
TIMEOUT_MS = 2_000


def end_user(name: str, business_id: str = "acme") -> RequestContext:
    return RequestContext(
        caller=name, authenticated=True, business_id=business_id, end_user=True, peer=THERE
    )


def service(name: str, business_id: str = "acme") -> RequestContext:
    return RequestContext(caller=name, authenticated=True, business_id=business_id, peer=THERE)


def peer(address: str) -> RequestContext:
    return RequestContext(peer=address)


def from_metadata(method: str, rpc: RequestContext) -> None:
    """Trust the identity that the client sends as metadata: `end-user` or `service`."""
    claims: dict[str, Any] = dict(rpc.metadata)
    rpc.end_user = "end-user" in claims
    if caller := claims.get("end-user") or claims.get("service"):
        rpc.caller, rpc.authenticated = caller, True


@dataclass
class LimitEvents:
    """An observer that records the events of the limits."""

    unchecked: int = 0
    alarms: list[str] = field(default_factory=list[str])
    log: LogCapture = field(default_factory=LogCapture)

    def rate_limit_unchecked(self) -> None:
        self.unchecked += 1

    def guess_alarm(self, kind: str) -> None:
        self.alarms.append(kind)


@dataclass
class Worker:
    """The limits of one worker. Several share a Redis."""

    events: LimitEvents
    windows: Windows

    def limiter(self, limits: CallerLimits) -> RateLimiter:
        return RateLimiter(limits, self.windows, self.events)

    def guesses(self, limits: CallerLimits) -> GuessGuard:
        log = structlog.wrap_logger(None, processors=[self.events.log])
        return GuessGuard(limits, self.windows, self.events, log)


@asynccontextmanager
async def worker(redis_url: str, timeout_ms: int = TIMEOUT_MS) -> AsyncGenerator[Worker]:
    windows = Windows(redis_url, timeout_ms)
    try:
        yield Worker(LimitEvents(), windows)
    finally:
        await windows.close()
