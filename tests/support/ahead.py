"""A server whose clock the test sets ahead."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from support.service import Api, ServerThread

from coupon_service.settings import Settings


@dataclass
class Clock:
    """The time of the server. Redis has the real one."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        """The real time, and so much more."""
        return datetime.now(UTC) + self.ahead


@dataclass(frozen=True)
class Shop:
    """A client of a server, and the clock of the server."""

    api: Api
    clock: Clock


@contextmanager
def server_ahead(settings: Settings) -> Generator[Shop]:
    """A server, and its clock, which is right to begin with."""
    clock = Clock()
    with (
        ServerThread(settings, clock.now) as server,
        closing(Api(server.address)) as api,
    ):
        yield Shop(api, clock)
