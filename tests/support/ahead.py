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
    stands_at: datetime | None = None
    """A time that does not go on by itself."""

    def now(self) -> datetime:
        """The real time or the one that it stands at, and so much more."""
        return (self.stands_at or datetime.now(UTC)) + self.ahead


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
