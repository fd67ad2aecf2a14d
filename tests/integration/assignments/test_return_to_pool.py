"""Codes that users let expire go back to the pool of their book, and to others."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import timedelta
from unittest import mock

import psycopg
import pytest
from model.clock import Clock, clocked_server
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    assignments,
    books,
    codes,
    refused,
)

from coupon_service.maintenance import pool_sweeper

REQUIRED = books.ASSIGNMENT_POLICY_REQUIRED
OPTIONAL = books.LOCK_POLICY_OPTIONAL
REVOKED = assignments.ASSIGNMENT_STATE_REVOKED
AVAILABLE = codes.COUPON_CODE_STATE_AVAILABLE
VALID_MS = 60_000
VALIDITY = timedelta(milliseconds=VALID_MS)


@dataclass(frozen=True)
class Shop:
    """Two servers on the same data, and a clock for them."""

    servers: tuple[ServerThread, ServerThread]
    api: Api
    clock: Clock
    database_url: str

    @property
    def lock_life_ms(self) -> int:
        """How long the longest lock keeps its permit."""
        settings = self.servers[0].settings
        return settings.lock_ttl_max_ms + settings.lock_grace_ms

    def book(self, count: int, **fields: object) -> books.CouponBook:
        """A book whose codes go back to the pool."""
        own = {"assignment_policy": REQUIRED, "lock_policy": OPTIONAL, "return_to_pool": True}
        own |= {"assigned_code_validity": VALIDITY, **fields}
        return self.api.book(codes=count, **own)

    def sweep(self, which: int = 0) -> int:
        """How many codes a server returns, whose turn it is."""
        server = self.servers[which]
        sweeper = server.server.shards[0].pool_sweeper
        with mock.patch.object(sweeper._reads, "my_turn", return_value=True):
            return server.run(sweeper.sweep())

    def adds_up(self) -> None:
        """Rows, counters and ledger agree."""
        with psycopg.connect(self.database_url) as connection:
            assert_adds_up(connection)


@pytest.fixture
def shop(
    new_database: Callable[[], AbstractContextManager[str]], redis_alone_url: str
) -> Iterator[Shop]:
    clock = Clock(redis_alone_url)
    with (
        new_database() as database_url,
        clocked_server(database_url, redis_alone_url, clock) as first,
        clocked_server(database_url, redis_alone_url, clock) as second,
        closing(Api(first.address)) as api,
    ):
        yield Shop((first, second), api, clock, database_url)


def test_a_code_that_was_let_expire_goes_to_somebody_else(shop: Shop) -> None:
    api, book = shop.api, shop.book(1, limits=books.BookLimits(max_assignments_per_user=1))
    given = api.assign_random(book.book_id, "ann").assignment
    with refused("NO_CODES_AVAILABLE"):
        api.assign_random(book.book_id, "bob")
    shop.clock.advance(VALID_MS + shop.lock_life_ms - 1)
    assert shop.sweep() == 0
    shop.clock.advance(1)
    assert shop.sweep() == 1
    assert shop.sweep() == 0
    shop.clock.advance(1)
    assert api.get_code(given.code).state == AVAILABLE
    assert api.assign_random(book.book_id, "bob").assignment.code == given.code
    (gone,) = api.assignments.ListUserCoupons(
        assignments.ListUserCouponsRequest(user_id="ann")
    ).coupons
    assert gone.assignment.state == REVOKED
    expected = ["ASSIGNED", "ASSIGNMENT_EXPIRED", "ASSIGNED"]
    assert api.event_names(code=given.code) == expected
    # Ann has none any more, so that she may have another one.
    with refused("NO_CODES_AVAILABLE"):
        api.assign_random(book.book_id, "ann")
    shop.adds_up()


def test_a_code_that_was_redeemed_stays(shop: Shop) -> None:
    api = shop.api
    limits = books.BookLimits(max_redemptions_per_code=3)
    book = shop.book(2, limits=limits)
    used, unused = (api.assign_random(book.book_id, user).assignment.code for user in ("a", "b"))
    redeemed = api.redeem(used, "a").redemption
    shop.clock.advance(VALID_MS + shop.lock_life_ms)
    assert shop.sweep() == 1
    assert api.get_code(unused).state == AVAILABLE
    api.rollback(redeemed.redemption_id)
    assert shop.sweep() == 1
    assert api.get_code(used).state == AVAILABLE
    shop.adds_up()


def test_a_lock_of_just_before_the_end_is_redeemed_at_its_own_end(shop: Shop) -> None:
    api, book = shop.api, shop.book(1)
    code = api.assign_random(book.book_id, "ann").assignment.code
    shop.clock.advance(VALID_MS - 1)
    lock_ms = shop.servers[0].settings.lock_ttl_max_ms
    token = api.lock(code, "ann", ttl_s=lock_ms / 1_000).lock_token
    shop.clock.advance(lock_ms - 1)
    assert shop.sweep() == 0
    api.redeem(code, "ann", lock_token=token)
    shop.clock.advance(2 * shop.lock_life_ms)
    assert shop.sweep() == 0
    shop.adds_up()


def test_all_that_are_due_are_returned_in_portions(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_sweeper, "RETURN_BATCH", 3)
    shop.book(10)
    for count in (7, 4):
        book = shop.book(count)
        for number in range(count):
            shop.api.assign_random(book.book_id, f"user-{number}")
    shop.clock.advance(VALID_MS + shop.lock_life_ms)
    assert shop.sweep() == 11
    shop.adds_up()


def test_two_replicas_return_a_code_once(shop: Shop) -> None:
    book = shop.book(50)
    for number in range(50):
        shop.api.assign_random(book.book_id, f"user-{number}")
    shop.clock.advance(VALID_MS + shop.lock_life_ms)
    assert sum(all_at_once([lambda: shop.sweep(0), lambda: shop.sweep(1)])) == 50
    assert shop.api.stats(book.book_id).available_count == 50
    shop.adds_up()


def test_books_that_do_not_say_so_keep_their_codes(shop: Shop) -> None:
    books_ = [shop.book(1), shop.book(1, return_to_pool=False), shop.book(1)]
    for book in books_:
        shop.api.assign_random(book.book_id, "ann")
    shop.api.update(books_[0].book_id, return_to_pool=False)
    shop.api.close_book(books_[2].book_id)
    shop.clock.advance(VALID_MS + shop.lock_life_ms)
    assert shop.sweep() == 0
    with psycopg.connect(shop.database_url) as connection:
        query = "SELECT count(*) FROM coupon_assignments WHERE returns"
        assert connection.execute(query).fetchone() == (2,)


def test_what_is_handed_over_goes_back_when_it_would_have(shop: Shop) -> None:
    book = shop.book(1)
    code = shop.api.assign_random(book.book_id, "ann").assignment.code
    shop.clock.advance(VALID_MS // 2)
    shop.api.transfer(code, "ann", "bob")
    shop.clock.advance(VALID_MS // 2 + shop.lock_life_ms)
    assert shop.sweep() == 1
    assert shop.api.get_code(code).assignment_count == 0
    shop.adds_up()


def test_a_lock_of_the_ledger_alone_keeps_a_code_from_going_back(shop: Shop) -> None:
    """Returns race with redemptions, by a sweeper that leaves it all to the ledger."""
    api, book = shop.api, shop.book(60)
    names = [api.assign_random(book.book_id, f"user-{n}").assignment.code for n in range(60)]
    tokens = {
        code: api.lock(code, f"user-{n}", ttl_s=120).lock_token
        for n, code in enumerate(names)
        if n % 2
    }
    shop.clock.advance(VALID_MS)

    def redeem(number: int, code: str) -> object:
        return api.redeem(code, f"user-{number}", lock_token=tokens.get(code, ""))

    sweepers = [server.server.shards[0].pool_sweeper for server in shop.servers]
    calls: list[Callable[[], object]] = [lambda: shop.sweep(0), lambda: shop.sweep(1)]
    calls += [lambda n=n, code=code: redeem(n, code) for n, code in enumerate(names)]
    with (
        mock.patch.object(sweepers[0], "_life_max", timedelta(0)),
        mock.patch.object(sweepers[1], "_life_max", timedelta(0)),
    ):
        all_at_once(calls)
        shop.sweep()
    stats = api.stats(book.book_id)
    assert (stats.redemption_count, stats.available_count, stats.assigned_count) == (30, 30, 0)
    shop.adds_up()
