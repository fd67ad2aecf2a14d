"""LockCode, ExtendLock, UnlockCode and the sweeper: what the ledger says of locks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from unit.rules.commands import (
    call,
    disable,
    expire,
    extend,
    lock,
    recorded,
    redeem,
    rollback,
    token,
    unlock,
)
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, PERMIT, World, active, lockable

from coupon_service.errors import (
    BookExpired,
    BookLimitExceeded,
    BookNotActive,
    BookNotStarted,
    CodeAlreadyRedeemed,
    CodeDisabled,
    CodeExpired,
    CodeNotAssignedToUser,
    Contention,
    CouponServiceError,
    InvalidStateTransition,
    LockExpired,
    LockLimitExceeded,
    LockNotFound,
    RequestIdReused,
    UserLimitExceeded,
)
from coupon_service.model import (
    AssignmentPolicy,
    BookState,
    BookTotals,
    Code,
    CodeState,
    Command,
    Done,
    Event,
    EventType,
    Lease,
    LockPolicy,
    LockState,
    UserCounts,
)
from coupon_service.rules import lock_view


def state_of(world: World, locked: Event) -> LockState:
    view = lock_view(world.state.lock_events[locked.event_id], world.now)
    assert view is not None
    return view.state


def _another() -> UUID:
    """The id of a permit that another attempt took."""
    return lock().lock_id


class TestLock:
    @pytest.mark.parametrize("policy", [LockPolicy.OPTIONAL, LockPolicy.REQUIRED])
    def test_the_ledger_has_a_row_with_everything_and_nothing_else_changes(
        self, policy: LockPolicy
    ) -> None:
        world = lockable(policy)
        before = world.code()
        command = lock(by=call("r1"), metadata='{"cart": 7}')
        done = world.does(command)
        assert world.ledger == [done.event]
        assert done.event == recorded(
            command,
            EventType.LOCKED,
            event_id=command.lock_id,
            state_before=CodeState.AVAILABLE,
            state_after=CodeState.AVAILABLE,
            lock_id=command.lock_id,
            fence=1,
            expire_time=NOW + MINUTE,
            metadata='{"cart": 7}',
        )
        assert done.code == world.code() == before
        assert world.stats == {}
        assert state_of(world, done.event) is LockState.HELD

    def test_every_lock_has_a_greater_fence(self) -> None:
        world = lockable(max_redemptions_per_code=0)
        one, two = world.batch(lock(user="ann"), lock(user="bob"))
        three = world.does(lock("B", user="ann"))
        fences = [it.event.fence for it in (one, two, three) if isinstance(it, Done)]
        assert fences == [1, 2, 3]

    def test_a_book_with_locking_off_has_no_locks(self) -> None:
        error = World().refuses(lock())
        assert type(error) is InvalidStateTransition
        assert error.metadata == {"state": "LOCK_POLICY_OFF"}

    def test_without_a_permit_it_is_to_come_again(self) -> None:
        assert lockable().asks_for_a_lease(lock(lease=None))

    @pytest.mark.parametrize("lease", [None, PERMIT])
    @pytest.mark.parametrize(
        ("rules", "reason"),
        [
            ({"state": BookState.PAUSED}, BookNotActive),
            ({"start_time": NOW + MOMENT}, BookNotStarted),
            ({"end_time": NOW}, BookExpired),
            ({"assignment_policy": AssignmentPolicy.REQUIRED}, CodeNotAssignedToUser),
            ({"max_redemptions_per_user": 1}, UserLimitExceeded),
            ({"max_redemptions": 1}, BookLimitExceeded),
        ],
    )
    def test_who_could_not_redeem_cannot_lock(
        self, rules: dict[str, Any], reason: type[CouponServiceError], lease: Lease | None
    ) -> None:
        world = lockable(**rules)
        world.put(UserCounts(redemptions=1))
        world.state.totals[BOOK_ID] = BookTotals(1)
        assert type(world.refuses(lock(lease=lease))) is reason

    def test_nor_who_has_used_the_code_up_or_whose_time_is_over(self) -> None:
        world = lockable(max_redemptions_per_code=5, max_redemptions_per_user_per_code=1)
        world.put(active(redemptions=1))
        assert type(world.refuses(lock())) is UserLimitExceeded
        world.put(active(expire_time=NOW))
        assert type(world.refuses(lock())) is CodeExpired
        world.put(Code("A", BOOK_ID, CodeState.DISABLED, 0, 1))
        assert type(world.refuses(lock(user="bob"))) is CodeDisabled

    def test_a_redeemed_code_cannot_be_locked(self) -> None:
        world = lockable()
        world.does(redeem(lease=PERMIT))
        assert type(world.refuses(lock(user="bob"))) is CodeAlreadyRedeemed

    def test_the_order_is_not_looked_at(self) -> None:
        lockable(min_order_amount_minor=1_000).does(lock())


class TestOwnLock:
    def test_asking_again_gives_the_same_lock(self) -> None:
        world = lockable()
        first = world.does(lock())
        again = world.does(lock(lock_id=first.event.event_id, expire_time=NOW + 2 * MINUTE))
        assert again.replayed
        assert again.event == first.event

    def test_the_ledger_says_who_was_answered_with_it(self) -> None:
        world = lockable()
        first = world.does(lock())
        command = lock(by=call("r1"), lock_id=first.event.event_id, metadata='{"cart": 7}')
        world.does(command)
        assert world.ledger == [
            first.event,
            recorded(
                command,
                EventType.LOCKED,
                state_before=CodeState.AVAILABLE,
                state_after=CodeState.AVAILABLE,
                lock_id=first.event.event_id,
                fence=1,
                metadata='{"cart": 7}',
            ),
        ]
        view = lock_view(world.ledger, NOW)
        assert view == lock_view([first.event], NOW)
        assert view == lock_view(world.ledger[::-1], NOW)

    @pytest.mark.parametrize("taken_by", ["an attempt", "a lost attempt"])
    def test_a_repeat_is_told_that_it_is_over(self, taken_by: str) -> None:
        world = lockable(max_redemptions_per_code=3)
        taken, by = lock(by=call("r1")), call("r2")
        if taken_by == "an attempt":
            world.does(taken)
        first = world.does(lock(by=by, lock_id=taken.lock_id)).event
        # When the lock is over it comes with another permit, and with its own id.
        repeats = (lock(by=by, lease=None), lock(by=by), lock(by=by, lock_id=_another()))
        for command in repeats:
            repeated = world.does(command)
            assert repeated.replayed
            assert repeated.event.lock_id == first.lock_id == taken.lock_id
            assert repeated.lock == lock_view(world.state.lock_events[taken.lock_id], NOW)
        world.does(unlock(first))
        for command in (*repeats, taken):
            error = world.refuses(command)
            assert type(error) is LockExpired
            assert error.metadata == {"state": "RELEASED"}

    def test_a_repeat_for_something_else_is_refused(self) -> None:
        world = lockable()
        first = world.does(lock())
        world.does(lock(by=call("r2"), lock_id=first.event.event_id))
        for other in (lock(by=call("r2"), metadata='{"n": 2}'), lock(user="bob", by=call("r2"))):
            assert type(world.refuses(other)) is RequestIdReused

    def test_also_at_the_same_moment(self) -> None:
        world = lockable()
        first = lock()
        one, two = world.batch(first, lock(lock_id=first.lock_id))
        assert isinstance(one, Done)
        assert isinstance(two, Done)
        assert (one.replayed, two.replayed) == (False, True)
        assert one.event == two.event

    def test_also_with_one_request_id(self) -> None:
        world = lockable()
        first = world.does(lock())
        command = lock(by=call("r2"), lock_id=first.event.event_id)
        one, two = world.batch(command, command)
        assert isinstance(one, Done)
        assert isinstance(two, Done)
        assert one.lock == two.lock == first.lock

    def test_one_that_ends_at_this_moment_is_nobodys_answer(self) -> None:
        world = lockable()
        first = world.does(lock()).event
        _, late = world.batch(unlock(first), lock(lock_id=first.event_id))
        assert isinstance(late, Contention)

    def test_also_when_the_second_is_decided_first(self) -> None:
        # Both asked for other things, so that their fingerprints differ.
        world = lockable()
        first = lock(metadata='{"n": 1}')
        second = lock(lock_id=first.lock_id, metadata='{"n": 2}')
        two, one = world.batch(second, first)
        assert isinstance(one, Done)
        assert isinstance(two, Done)
        assert (one.replayed, two.replayed) == (True, False)
        assert one.event == two.event
        assert one.event.lock_id == first.lock_id

    def test_a_permit_whose_lock_was_not_recorded_is_recorded_by_the_next_who_asks(self) -> None:
        world = lockable()
        lost = lock(by=call("r1"))
        command = lock(by=call("r2"), lock_id=lost.lock_id)
        event = world.does(command).event
        assert event.event_id == event.lock_id == lost.lock_id
        assert event.request_id == "r2"
        repeated = world.does(lost)
        assert repeated.replayed
        assert repeated.event == event

    def test_a_permit_whose_request_id_was_then_used_for_another_user_is_not_theirs(self) -> None:
        world = lockable(max_redemptions_per_code=2)
        lost = lock(by=call("r1"))
        world.does(lock(user="bob", by=call("r1")))
        assert type(world.refuses(lost)) is RequestIdReused
        assert type(world.refuses(lock(by=call("r2"), lock_id=lost.lock_id))) is Contention

    def test_nor_one_whose_request_id_was_answered_with_another_lock(self) -> None:
        world = lockable(max_redemptions_per_code=2)
        first = world.does(lock()).event
        late = lock(by=call("r1"))
        world.does(lock(by=call("r1"), lock_id=first.event_id))
        world.does(unlock(first))
        assert type(world.refuses(lock(by=call("r2"), lock_id=late.lock_id))) is Contention

    def test_nor_is_it_theirs_when_the_next_of_the_first_user_has_recorded_it(self) -> None:
        world = lockable(max_redemptions_per_code=2)
        lost = lock(by=call("r1"))
        world.does(lock(by=call("r2"), lock_id=lost.lock_id))
        assert type(world.refuses(lock(user="bob", by=call("r1")))) is RequestIdReused

    def test_a_repeat_with_other_parameters_is_refused(self) -> None:
        world = lockable()
        world.does(lock(by=call("r1")))
        error = world.refuses(lock(by=call("r1"), metadata='{"cart": 8}'))
        assert type(error) is RequestIdReused

    @pytest.mark.parametrize("end", ["RELEASED", "REDEEMED", "EXPIRED"])
    def test_a_repeat_is_told_how_the_lock_ended(self, end: str) -> None:
        world = lockable(max_redemptions_per_code=2)
        first = world.does(lock(by=call("r1"))).event
        command = extend(first, NOW + 2 * MINUTE, call("r1"))
        world.does(command)
        if end == "EXPIRED":
            world.now += 2 * MINUTE
        else:
            world.does(unlock(first) if end == "RELEASED" else redeem(lock=token(first)))
        for repeat in (lock(by=call("r1")), command):
            for _ in range(2):
                error = world.refuses(repeat)
                assert type(error) is LockExpired
                assert error.metadata == {"state": end}
            world.change_book(lock_policy=LockPolicy.OFF)

    def test_a_repeat_in_the_batch_that_ends_the_lock_is_told_so_too(self) -> None:
        world = lockable()
        taken = lock(by=call("r1"))
        first = world.does(taken).event
        before, _, after = world.batch(taken, unlock(first), taken)
        assert isinstance(before, Done)
        assert isinstance(after, LockExpired)

    def test_a_repeat_of_a_lock_whose_history_is_not_there_is_told_that_it_expired(self) -> None:
        world = lockable()
        world.does(lock(by=call("r1")))
        world.state.lock_events.clear()
        assert world.refuses(lock(by=call("r1"))).metadata == {"state": "EXPIRED"}


class TestExtend:
    def test_it_gets_a_new_end(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now += MINUTE / 2
        command = extend(locked, NOW + 2 * MINUTE, call("r2"))
        done = world.does(command)
        assert world.ledger == [locked, done.event]
        assert done.event == recorded(
            command,
            EventType.LOCK_EXTENDED,
            event_time=world.now,
            request_id="r2",
            state_before=CodeState.AVAILABLE,
            state_after=CodeState.AVAILABLE,
            lock_id=locked.event_id,
            fence=1,
            expire_time=NOW + 2 * MINUTE,
        )
        world.now = NOW + 2 * MINUTE - MOMENT
        assert state_of(world, locked) is LockState.HELD
        world.now += MOMENT
        assert state_of(world, locked) is LockState.EXPIRED

    def test_an_expired_lock_cannot_be_extended(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now = NOW + MINUTE
        error = world.refuses(extend(locked, NOW + 2 * MINUTE))
        assert type(error) is LockExpired
        assert error.metadata == {"state": "EXPIRED"}
        world.now -= MOMENT
        world.does(extend(locked, NOW + 2 * MINUTE))

    def test_it_is_extended_no_more_often_than_allowed(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        for _ in range(2):
            world.does(extend(locked, NOW + 2 * MINUTE, extensions_max=2))
        error = world.refuses(extend(locked, NOW + 3 * MINUTE, extensions_max=2))
        assert type(error) is LockLimitExceeded
        assert error.metadata == {"limit": "2"}

    def test_it_is_judged_now(self) -> None:
        for change, error in (
            ({"end_time": NOW + MOMENT}, BookExpired),
            ({"start_time": NOW + MINUTE}, BookNotStarted),
        ):
            world = lockable()
            locked = world.does(lock()).event
            world.change_book(**change)
            world.now += MOMENT
            assert type(world.refuses(extend(locked, NOW + 2 * MINUTE))) is error
        world = lockable()
        world.put(active(expire_time=NOW + MOMENT))
        locked = world.does(lock()).event
        world.does(extend(locked, NOW + 2 * MINUTE))
        world.now += MOMENT
        assert type(world.refuses(extend(locked, NOW + 3 * MINUTE))) is CodeExpired

    def test_not_in_a_book_with_locking_off(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.change_book(lock_policy=LockPolicy.OFF)
        error = world.refuses(extend(locked, NOW + 2 * MINUTE))
        assert type(error) is InvalidStateTransition
        assert error.metadata == {"state": "LOCK_POLICY_OFF"}

    def test_its_repeat_is_answered_as_before(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        first = world.does(extend(locked, NOW + 2 * MINUTE, call("r2")))
        again = world.does(extend(locked, NOW + 3 * MINUTE, call("r2")))
        assert again.replayed
        assert again.event == first.event
        assert again.lock == first.lock


class TestUnlock:
    def test_it_ends_the_lock(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        command = unlock(locked, call("r2"))
        done = world.does(command)
        assert world.ledger == [locked, done.event]
        assert done.event == recorded(
            command,
            EventType.UNLOCKED,
            request_id="r2",
            state_before=CodeState.AVAILABLE,
            state_after=CodeState.AVAILABLE,
            lock_id=locked.event_id,
            fence=1,
        )
        assert state_of(world, locked) is LockState.RELEASED

    def test_whoever_ends_it_again_hears_that_it_was_ended(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        first = world.does(unlock(locked, call("r2")))
        for by in (call("r2"), call("r3"), call("r2", "operator")):
            again = world.does(unlock(locked, by))
            assert again.replayed
            assert again.event == first.event

    @pytest.mark.parametrize("state", BookState)
    def test_it_works_whatever_the_state_of_book_and_code(self, state: BookState) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.does(disable())
        world.change_book(state=state, end_time=NOW, lock_policy=LockPolicy.OFF)
        world.does(unlock(locked))


class TestExpire:
    def test_the_sweeper_records_that_a_lock_expired(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now += 2 * MINUTE
        event = world.does(expire(locked)).event
        assert (event.type, event.caller) == (EventType.LOCK_EXPIRED, "sweeper")
        assert (event.user_id, event.lock_id, event.fence) == ("ann", locked.event_id, 1)
        assert event.expire_time is None
        assert world.does(expire(locked)).replayed
        assert state_of(world, locked) is LockState.EXPIRED

    def test_a_lock_does_not_expire_before_its_time(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now = NOW + MINUTE - MOMENT
        error = world.refuses(expire(locked))
        assert type(error) is LockExpired
        assert error.metadata == {"state": "HELD"}
        world.now += MOMENT
        world.does(expire(locked))

    def test_a_lock_that_was_extended_meanwhile_does_not_expire(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.does(extend(locked, NOW + 3 * MINUTE))
        world.now += 2 * MINUTE
        assert type(world.refuses(expire(locked))) is LockExpired


def _redeemed(locked: Event) -> Command:
    return redeem(lock=token(locked))


class TestAnswer:
    """What a decision says of the lock is what the ledger says of it afterwards."""

    def test_a_lock_is_shown_as_it_is_after_each_change(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        for command in (
            extend(locked, NOW + 2 * MINUTE, call("r2")),
            unlock(locked, call("r3")),
        ):
            assert world.does(command).lock == lock_view(world.ledger, world.now)

    def test_so_is_one_that_was_just_acquired(self) -> None:
        world = lockable()
        assert world.does(lock()).lock == lock_view(world.ledger, world.now)

    def test_a_repeat_is_told_how_it_is_now(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        command = extend(locked, NOW + 2 * MINUTE, call("r2"))
        world.does(command)
        world.does(extend(locked, NOW + 3 * MINUTE))
        again = world.does(command)
        assert again.lock == lock_view(world.ledger, world.now)
        world.does(unlock(locked))
        assert world.does(unlock(locked)).lock == lock_view(world.ledger, world.now)


class TestEnds:
    @pytest.mark.parametrize("end", [_redeemed, unlock, expire])
    def test_a_lock_ends_once(self, end: Callable[[Event], Command]) -> None:
        world = lockable(max_redemptions_per_code=2)
        locked = world.does(lock()).event
        if end is expire:
            world.now += 2 * MINUTE
        world.does(end(locked))
        ended = state_of(world, locked)
        world.now += 2 * MINUTE
        for change in {unlock, expire} - {end}:
            assert type(world.refuses(change(locked))) is LockExpired
        error = world.refuses(extend(locked, NOW + 9 * MINUTE))
        assert type(error) is LockExpired
        assert error.metadata == {"state": ended.name}
        assert state_of(world, locked) is ended

    def test_also_within_a_batch(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        redeemed, unlocked = world.batch(redeem(lock=token(locked)), unlock(locked))
        assert isinstance(redeemed, Done)
        assert isinstance(unlocked, LockExpired)
        assert unlocked.metadata == {"state": "REDEEMED"}
        assert state_of(world, locked) is LockState.REDEEMED

    def test_a_roll_back_does_not_bring_it_back(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        redeemed = world.does(redeem(lock=token(locked))).event
        world.does(rollback(redeemed))
        assert state_of(world, locked) is LockState.REDEEMED
        assert type(world.refuses(redeem(lock=token(locked)))) is LockExpired

    def test_a_lock_that_never_was_is_not_found(self) -> None:
        world = lockable()
        other = lockable()
        locked = other.does(lock()).event
        for command in (extend(locked, NOW + MINUTE), unlock(locked), expire(locked)):
            assert type(world.refuses(command)) is LockNotFound
