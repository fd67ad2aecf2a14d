"""States and amounts that are derived and never stored."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rules.commands import expire, extend, lock, redeem, token, unlock
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, book

from coupon_service.model import (
    AmountOff,
    Benefit,
    BookState,
    Code,
    CodeState,
    Discount,
    Event,
    EventType,
    LockPolicy,
    LockState,
    LockView,
    Money,
    PercentOff,
    Tier,
    TieredDiscount,
)
from coupon_service.rules import (
    code_state,
    discount_of,
    effective_book_state,
    effective_code_state,
    lock_view,
    order_discount,
)

TIERS = TieredDiscount((Tier(5_000, PercentOff(1_000, 0)), Tier(10_000, AmountOff(1_500))))
BEFORE, AFTER = NOW - MOMENT, NOW + MOMENT


class TestBookState:
    @pytest.mark.parametrize(
        ("rules", "redemptions", "expected"),
        [
            ({}, None, BookState.ACTIVE),
            ({"start_time": NOW}, None, BookState.ACTIVE),
            ({"start_time": AFTER}, None, BookState.SCHEDULED),
            ({"end_time": AFTER}, None, BookState.ACTIVE),
            ({"end_time": NOW}, None, BookState.EXPIRED),
            ({"max_redemptions": 5}, 4, BookState.ACTIVE),
            ({"max_redemptions": 5}, 5, BookState.EXHAUSTED),
            ({"max_redemptions": 5}, 6, BookState.EXHAUSTED),
            ({"max_redemptions": 5}, None, BookState.ACTIVE),
            ({"max_redemptions": 0}, 5, BookState.ACTIVE),
            ({"max_redemptions": 5, "end_time": NOW}, 5, BookState.EXPIRED),
            ({"max_redemptions": 5, "start_time": AFTER}, 5, BookState.SCHEDULED),
            ({"state": BookState.PAUSED}, None, BookState.PAUSED),
            ({"state": BookState.PAUSED, "end_time": NOW}, None, BookState.EXPIRED),
            ({"state": BookState.PAUSED, "start_time": AFTER}, None, BookState.PAUSED),
            ({"state": BookState.PAUSED, "max_redemptions": 5}, 5, BookState.PAUSED),
            ({"state": BookState.DRAFT, "end_time": NOW}, None, BookState.DRAFT),
            ({"state": BookState.DRAFT, "start_time": AFTER}, None, BookState.DRAFT),
            ({"state": BookState.CLOSED, "end_time": NOW}, None, BookState.CLOSED),
            ({"state": BookState.CLOSED, "max_redemptions": 5}, 5, BookState.CLOSED),
        ],
    )
    def test_a_book_is_what_says_most(
        self, rules: dict[str, Any], redemptions: int | None, expected: BookState
    ) -> None:
        assert effective_book_state(book(**rules), redemptions, NOW) is expected


class TestCodeState:
    @pytest.mark.parametrize(
        ("redemptions", "assignments", "limit", "expected"),
        [
            (0, 0, 1, CodeState.AVAILABLE),
            (0, 1, 1, CodeState.ASSIGNED),
            (1, 0, 1, CodeState.REDEEMED),
            (1, 1, 1, CodeState.REDEEMED),
            (1, 0, 2, CodeState.AVAILABLE),
            (1, 2, 2, CodeState.ASSIGNED),
            (3, 0, 2, CodeState.REDEEMED),
            (9, 0, 0, CodeState.AVAILABLE),
            (9, 1, 0, CodeState.ASSIGNED),
        ],
    )
    def test_it_follows_from_the_counts(
        self, redemptions: int, assignments: int, limit: int, expected: CodeState
    ) -> None:
        assert code_state(redemptions, assignments, limit) is expected

    @pytest.mark.parametrize("stored", [CodeState.AVAILABLE, CodeState.ASSIGNED])
    @pytest.mark.parametrize(
        ("book_ends", "user_ends", "locked_out", "expected"),
        [
            (None, None, False, None),
            (AFTER, AFTER, False, None),
            (NOW, None, False, CodeState.EXPIRED),
            (None, NOW, False, CodeState.EXPIRED),
            (AFTER, NOW, False, CodeState.EXPIRED),
            (NOW, AFTER, False, CodeState.EXPIRED),
            (None, None, True, CodeState.LOCKED),
            (AFTER, AFTER, True, CodeState.LOCKED),
            (NOW, None, True, CodeState.EXPIRED),
        ],
    )
    def test_a_usable_code_may_be_expired_or_locked(
        self,
        stored: CodeState,
        book_ends: datetime | None,
        user_ends: datetime | None,
        locked_out: bool,
        expected: CodeState | None,
    ) -> None:
        code = Code("A", BOOK_ID, stored, 0, 0)
        state = effective_code_state(
            code, book(end_time=book_ends), NOW, locked_out=locked_out, expire_time=user_ends
        )
        assert state is (expected or stored)

    @pytest.mark.parametrize("stored", [CodeState.REDEEMED, CodeState.DISABLED])
    def test_a_used_up_or_disabled_code_is_just_that(self, stored: CodeState) -> None:
        code = Code("A", BOOK_ID, stored, 0, 0)
        state = effective_code_state(
            code, book(end_time=NOW), NOW, locked_out=True, expire_time=NOW
        )
        assert state is stored


class TestDiscount:
    @pytest.mark.parametrize(
        ("discount", "order_minor", "expected"),
        [
            (PercentOff(1_500, 0), 1_999, 299),
            (PercentOff(1, 0), 9_999, 0),
            (PercentOff(1, 0), 10_000, 1),
            (PercentOff(10_000, 0), 1_999, 1_999),
            (PercentOff(1_500, 200), 1_999, 200),
            (PercentOff(1_500, 300), 1_999, 299),
            (PercentOff(1_500, 200), None, None),
            (PercentOff(10_000, 0), 10**15, 10**15),
            (AmountOff(500), 1_999, 500),
            (AmountOff(500), 500, 500),
            (AmountOff(500), 499, 499),
            (AmountOff(500), None, 500),
            (Benefit("a cup"), 1_999, None),
            (Benefit("a cup"), None, None),
            (TIERS, None, None),
            (TIERS, 4_999, None),
            (TIERS, 5_000, 500),
            (TIERS, 9_999, 999),
            (TIERS, 10_000, 1_500),
            (TIERS, 10**15, 1_500),
        ],
    )
    def test_it_is_rounded_down_and_never_more_than_the_order(
        self, discount: Discount, order_minor: int | None, expected: int | None
    ) -> None:
        the_book = book(discount=discount)
        order = None if order_minor is None else Money(order_minor, "EUR")
        assert discount_of(the_book, order_minor) == expected
        money = order_discount(the_book, order)
        assert money == (None if expected is None else Money(expected, "EUR"))

    def test_an_order_in_another_currency_shows_no_amount(self) -> None:
        dollars = Money(100, "USD")
        assert order_discount(book(discount=PercentOff(1_500, 0)), dollars) is None
        assert order_discount(book(discount=AmountOff(500)), dollars) == Money(500, "EUR")

    @given(st.integers(1, 10_000), st.integers(0, 10**6), st.integers(1, 10**15))
    def test_a_percentage_is_between_nothing_and_the_order(
        self, basis_points: int, cap_minor: int, order_minor: int
    ) -> None:
        discount = discount_of(book(discount=PercentOff(basis_points, cap_minor)), order_minor)
        assert discount is not None
        assert 0 <= discount <= order_minor
        assert not cap_minor or discount <= cap_minor
        assert discount * 10_000 <= order_minor * basis_points


class TestLock:
    def life(self) -> tuple[World, Event]:
        world = World(book(lock_policy=LockPolicy.OPTIONAL))
        return world, world.does(lock()).event

    def test_a_lock_is_derived_from_its_ledger_rows(self) -> None:
        _, locked = self.life()
        assert lock_view([locked], NOW) == LockView(
            lock_id=locked.event_id,
            code="A",
            book_id=BOOK_ID,
            user_id="ann",
            state=LockState.HELD,
            fence=1,
            create_time=NOW,
            expire_time=NOW + MINUTE,
        )

    def test_it_is_held_until_it_expires(self) -> None:
        _, locked = self.life()
        before = lock_view([locked], NOW + MINUTE - MOMENT)
        after = lock_view([locked], NOW + MINUTE)
        assert before is not None
        assert after is not None
        assert (before.state, after.state) == (LockState.HELD, LockState.EXPIRED)

    def test_an_extension_never_makes_it_end_earlier(self) -> None:
        _, locked = self.life()
        for end, expected in ((NOW, NOW + MINUTE), (NOW + 2 * MINUTE, NOW + 2 * MINUTE)):
            extended = replace(locked, type=EventType.LOCK_EXTENDED, expire_time=end)
            view = lock_view([locked, extended], NOW)
            assert view is not None
            assert view.expire_time == expected

    @pytest.mark.parametrize(
        ("end", "state"),
        [
            ("redeem", LockState.REDEEMED),
            ("unlock", LockState.RELEASED),
            ("expire", LockState.EXPIRED),
        ],
    )
    def test_its_rows_can_come_in_any_order(self, end: str, state: LockState) -> None:
        world, locked = self.life()
        world.does(extend(locked, NOW + 2 * MINUTE))
        world.does(extend(locked, NOW + 3 * MINUTE))
        if end == "expire":
            world.now += 3 * MINUTE
        ends = {"redeem": redeem(lock=token(locked)), "unlock": unlock(locked)}
        world.does(ends.get(end, expire(locked)))
        for later in (NOW, NOW + timedelta(days=1)):
            views = {lock_view(rows, later) for rows in permutations(world.ledger)}
            (view,) = views
            assert view is not None
            assert (view.state, view.expire_time) == (state, NOW + 3 * MINUTE)

    def test_what_was_redeemed_is_redeemed_however_else_it_ended(self) -> None:
        _, locked = self.life()
        ends = [
            replace(locked, type=event, expire_time=None)
            for event in (EventType.LOCK_EXPIRED, EventType.UNLOCKED, EventType.REDEEMED)
        ]
        for rows in permutations([locked, *ends]):
            view = lock_view(rows, NOW)
            assert view is not None
            assert view.state is LockState.REDEEMED

    def test_without_its_first_row_there_is_no_lock(self) -> None:
        world, locked = self.life()
        assert lock_view([], NOW) is None
        world.does(extend(locked, NOW + 2 * MINUTE))
        assert lock_view(world.ledger[1:], NOW) is None
        assert lock_view([replace(locked, expire_time=None)], NOW) is None
