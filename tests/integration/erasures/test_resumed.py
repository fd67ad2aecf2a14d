"""An erasure that is cut off at any point goes on with the next call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import psycopg
import pytest
from support.calls import batch, item
from support.invariants import assert_adds_up
from support.person import Person, erase
from support.service import Api, ServerThread, audit, books, new_codes, settings_for, unique
from support.service_process import environment_of, serving, workers_of
from support.store import opened
from support.traces import traces_in
from support.waiting import until

from coupon_service import erasure
from coupon_service.errors import DatabaseUnavailable
from coupon_service.leases import Leases
from coupon_service.store import erasures

STEPS = (
    "begin_erasure",
    "lock_erased",
    "set_erasure",
    "erase_chunk",
    "insert_event_once",
    "select_assigned",
    "select_recent_locks",
    "select_businesses",
    "unaware",
)


class Cut:
    """Fails at the step of this number, counted over all of them."""

    def __init__(self, at: int) -> None:
        self.left = at

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        async def take(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise DatabaseUnavailable
            done = await step(*arguments, **named)
            self.left -= 1
            if self.left == 0:  # done, and rolled back or not known to the caller
                raise DatabaseUnavailable
            return done

        return take


@contextmanager
def cut(at: int) -> Generator[Cut]:
    cutting = Cut(at)
    with ExitStack() as stack:
        for name in STEPS:
            step = cutting.around(getattr(erasure, name))
            stack.enter_context(mock.patch.object(erasure, name, step))
        forget: Any = cutting.around(Leases.erase)
        stack.enter_context(mock.patch.object(Leases, "erase", forget))
        yield cutting


@pytest.fixture
def alone(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> Iterator[ServerThread]:
    """A server on data of its own, which erases four ledger rows at a time."""
    with (
        new_database() as database_url,
        ServerThread(settings_for(database_url, redis_url)) as server,
        mock.patch.object(erasures, "CHUNK", 4),
    ):
        yield server


def test_a_call_that_was_cut_off_anywhere_is_resumed(alone: ServerThread) -> None:
    redis_url = alone.settings.redis_url
    assert redis_url is not None
    with closing(Api(alone.address)) as api:
        at, done = 0, False
        while not done:
            at += 3
            person, ticket = Person(api), unique("ticket")
            person.live()
            person.keep_what_is_the_friends()
            with cut(at):
                try:
                    erase(api, person.user_id, ticket)
                    done = True
                except grpc.RpcError:
                    pass
            last = erase(api, person.user_id, ticket)[-1]
            assert last.erasure.state == audit.ERASURE_STATE_ERASED
            found = traces_in(alone.database_url, redis_url.get_secret_value(), person.names)
            assert found == [], at
            assert last.erasure.changed_rows["coupon_assignments"] == 5
            with psycopg.connect(alone.database_url) as connection:
                assert_adds_up(connection, person.book_ids)
        assert at > 60


def test_a_client_that_goes_away_leaves_it_to_the_next(alone: ServerThread) -> None:
    with closing(Api(alone.address)) as api:
        person, ticket = Person(api), unique("ticket")
        person.live()
        states: list[int] = []
        while not states or states[-1] != audit.ERASURE_STATE_ERASED:
            request = audit.EraseUserRequest(user_id=person.user_id, request_id=ticket)
            progress = api.audit.EraseUser(request)
            states += [next(progress).erasure.state for _ in range(min(len(states) + 1, 2))]
            progress.cancel()
        with psycopg.connect(alone.database_url) as connection:
            assert_adds_up(connection, person.book_ids)


async def test_for_how_long_an_erasure_has_not_been_finished_is_shown(alone: ServerThread) -> None:
    async with opened(alone.database_url) as database:
        with closing(Api(alone.address)) as api:
            person = Person(api)
            person.book(1)
            assert await database.read("unfinished", erasures.unfinished_s) == 0
            with cut(9), pytest.raises(grpc.RpcError):
                erase(api, person.user_id)
            assert await database.read("unfinished", erasures.unfinished_s) > 0
            erase(api, person.user_id)
            assert await database.read("unfinished", erasures.unfinished_s) == 0


LOCK_LAST = """
SELECT FROM redemption_audit WHERE user_id = %s
ORDER BY event_time DESC, event_id DESC LIMIT 1 FOR UPDATE
"""
LEFT = "SELECT count(*) FROM redemption_audit WHERE user_id = %s"


@pytest.mark.one_shard
def test_workers_that_are_killed_leave_it_to_the_next_call(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    environment = environment_of(database_url, redis_url)
    user, names = unique("user"), new_codes(2_000)
    with (
        serving(environment, tmp_path) as service,
        closing(Api(f"127.0.0.1:{environment['COUPON_PORT']}")) as api,
    ):
        limits = books.BookLimits(max_redemptions_per_user=10_000)
        book = api.book(codes=names, limits=limits)
        for start in range(0, len(names), 1_000):
            found = batch(api, [item(it, user) for it in names[start : start + 1_000]])
            assert found.redeemed_count == 1_000
        request = audit.EraseUserRequest(user_id=user, request_id="ticket")
        with psycopg.connect(database_url) as connection:
            connection.execute(LOCK_LAST, [user])  # so that it cannot be done before
            progress = api.audit.EraseUser(request)
            while not next(progress).erasure.changed_rows.get("redemption_audit"):
                pass
            for worker in workers_of(service):
                worker.kill()
            with pytest.raises(grpc.RpcError):
                list(progress)
            assert connection.execute(LEFT, [user]).fetchone() not in {(0,), (2_000,)}

        def again() -> bool:
            try:
                *_, last = api.audit.EraseUser(request)
            except grpc.RpcError:
                return False
            assert last.erasure.changed_rows["redemption_audit"] == 2_000
            return last.erasure.state == audit.ERASURE_STATE_ERASED

        until(again)
        assert traces_in(database_url, redis_url, [user]) == []
        assert api.stats(book.book_id).redemption_count == 2_000
        with psycopg.connect(database_url) as connection:
            assert_adds_up(connection)
