"""A reader of WatchAuditEvents that is cut at random, and what its events have to be."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterable
from itertools import groupby, pairwise
from typing import Any, Final, cast

import grpc
import psycopg
from support.service import Api, audit

PAUSE_S: Final = 0.05

STORED: Final = "SELECT event_id::text FROM redemption_audit WHERE book_id = ANY(%s)"


class LedgerFollower:
    """What a program that keeps the token with the effects of its events has got by now."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._token = ""
        self.events: list[audit.AuditEvent] = []
        self.cuts = 0
        self.stopped = threading.Event()

    def follow(self, api: Callable[[], Api]) -> None:
        """Reads until it is stopped, over whatever streams it gets."""
        while not self.stopped.is_set():
            try:
                self._read(api(), self._chance.randint(1, 12))
            except grpc.RpcError as error:
                if cast("grpc.Call", error).code() is grpc.StatusCode.FAILED_PRECONDITION:
                    raise  # RESUME_TOKEN_AHEAD
                self.stopped.wait(PAUSE_S)
            self.cuts += 1

    def read_to_the_end(self, api: Api) -> None:
        """Reads what has been recorded by now."""
        request = audit.WatchAuditEventsRequest(resume_token=self._token, stop_at_end=True)
        for message in api.audit.WatchAuditEvents(request):
            self._keep(message)

    def _read(self, api: Api, count: int) -> None:
        """Reads so many messages, and forgets some that it has not kept."""
        request = audit.WatchAuditEventsRequest(resume_token=self._token)
        stream = api.audit.WatchAuditEvents(request, timeout=5)
        try:
            for message in stream:
                if self._chance.random() < 0.1:
                    return  # cut before its effects and token were kept
                self._keep(message)
                count -= 1
                if not count or self.stopped.is_set():
                    return
        finally:
            stream.cancel()

    def _keep(self, message: audit.WatchAuditEventsResponse) -> None:
        self.events += message.events
        self._token = message.resume_token


def assert_followed(
    events: Iterable[audit.AuditEvent], connection: psycopg.Connection[Any], books: Collection[str]
) -> None:
    """Assert that these are all events of the books, each once, and those of a code in order."""
    read = [it for it in events if it.book_id in books]
    stored = {row[0] for row in connection.execute(STORED, [list(books)])}
    ids = [it.event_id for it in read]
    assert len(ids) == len(set(ids)), "an event was read twice"
    assert set(ids) == stored, f"missed: {stored - set(ids)}, never stored: {set(ids) - stored}"
    assert_in_order(read)


def assert_in_order(events: Iterable[audit.AuditEvent]) -> None:
    """Assert that each event of a code begins in the state in which the one before has left it."""
    of_codes = sorted((it for it in events if it.code), key=lambda it: (it.book_id, it.code))
    for _, of_code in groupby(of_codes, key=lambda it: (it.book_id, it.code)):
        chain = list(of_code)
        for before, after in pairwise(chain):
            assert before.state_after == after.state_before, f"{before} and then {after}"
