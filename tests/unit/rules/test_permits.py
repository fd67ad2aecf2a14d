"""Permits on a code: live locks + redemptions never exceed its limit."""

from __future__ import annotations

from uuid import UUID

import pytest
from unit.rules.commands import call, lock, redeem, rollback, token
from unit.rules.world import BOOK_ID, PERMIT, lockable

from coupon_service.errors import (
    CodeAlreadyRedeemed,
    CodeLocked,
)
from coupon_service.model import (
    Code,
    CodeState,
    CommandGroup,
    Done,
    Lease,
)


class TestPlaces:
    """Live locks + redemptions ≤ the code's limit, the permit that was just taken included."""

    @pytest.mark.parametrize(
        ("limit", "redemptions", "permits_taken", "fits"),
        [
            (1, 0, 1, True),
            (1, 0, 2, False),
            (3, 0, 3, True),
            (3, 0, 4, False),
            (3, 1, 2, True),
            (3, 1, 3, False),
            (3, 2, 1, True),
            (3, 2, 2, False),
            (0, 1_000, 1_000, True),
        ],
    )
    def test_a_permit_has_to_fit_beside_the_others(
        self, limit: int, redemptions: int, permits_taken: int, fits: bool
    ) -> None:
        world = lockable(max_redemptions_per_code=limit)
        world.put(Code("A", BOOK_ID, CodeState.AVAILABLE, redemptions, 0))
        lease = Lease(permits_taken=permits_taken, retry_after_ms=1_500)
        for command in (lock(lease=lease), redeem(lease=lease)):
            if fits:
                ((outcome,),), _ = world.decide(CommandGroup((command,)))
                assert isinstance(outcome, Done)
            else:
                error = world.refuses(command)
                assert type(error) is CodeLocked
                assert error.metadata == {"retry_after_ms": "1500"}

    def test_who_has_just_used_a_lock_does_not_pass_that_of_another_as_well(self) -> None:
        # The own lock is not counted beside the second, so that its redemption is no permit of it.
        world = lockable(max_redemptions_per_code=2)
        own = world.does(lock(user="ann")).event
        world.does(lock(user="bob", lease=Lease(permits_taken=2)))
        lease = Lease(permits_taken=2, held_lock_id=own.event_id)
        first, second = world.batch(
            redeem(by=call("r1"), lock=token(own)), redeem(by=call("r2"), lease=lease)
        )
        assert isinstance(first, Done)
        assert isinstance(second, CodeLocked)

    def test_a_used_up_code_is_redeemed_rather_than_locked(self) -> None:
        world = lockable()
        world.put(Code("A", BOOK_ID, CodeState.REDEEMED, 1, 0))
        assert type(world.refuses(lock(lease=Lease(permits_taken=2)))) is CodeAlreadyRedeemed
        assert type(world.refuses(redeem(lease=Lease(permits_taken=2)))) is CodeAlreadyRedeemed

    @pytest.mark.parametrize("locks", [0, 1, 9])
    @pytest.mark.parametrize("latest_first", [False, True])
    def test_of_many_at_once_as_many_redeem_as_fit_beside_the_locks(
        self, locks: int, latest_first: bool
    ) -> None:
        # Each counts the permits that were taken before its own.
        world = lockable(max_redemptions_per_code=12)
        world.put(Code("A", BOOK_ID, CodeState.AVAILABLE, 2, 0))
        held = [
            world.does(lock(user=f"holder {n}", lease=Lease(permits_taken=n))).event
            for n in range(1, locks + 1)
        ]
        permits = range(locks + 1, locks + 31)
        outcomes = world.batch(
            *(
                redeem(user=f"user {n}", lease=Lease(permits_taken=n))
                for n in (reversed(permits) if latest_first else permits)
            )
        )
        assert sum(isinstance(it, Done) for it in outcomes) == 10 - locks
        for locked in held:
            world.does(redeem(user=locked.user_id or "", lock=token(locked)))
        assert world.code().redemptions == 12

    def test_a_use_that_was_given_back_in_the_same_batch_is_free(self) -> None:
        world = lockable()
        redeemed = world.does(redeem(lease=PERMIT)).event
        _, again = world.batch(rollback(redeemed), redeem(user="bob", lease=PERMIT))
        assert isinstance(again, Done)

    def test_a_lock_counts_the_redemptions_of_its_batch_once(self) -> None:
        world = lockable(max_redemptions_per_code=2)
        redeemed, locked, late = world.batch(
            redeem(user="ann", lease=Lease(permits_taken=1)),
            lock(user="bob", lease=Lease(permits_taken=2)),
            lock(user="cid", lease=Lease(permits_taken=3)),
        )
        assert isinstance(redeemed, Done)
        assert isinstance(locked, Done)
        assert type(late) is CodeLocked


class TestOwnLock:
    """A user's own lock does not count as a permit, as long as the redemption uses it up."""

    def test_who_locks_and_redeems_at_once_does_both_only_where_both_fit(self) -> None:
        world = lockable(max_redemptions_per_code=2)
        world.does(lock(user="ann"))
        locking = lock(user="bob", by=call("r1"), lease=Lease(permits_taken=2))
        lease = Lease(permits_taken=2, held_lock_id=locking.lock_id)
        redeemed, locked = world.batch(redeem(user="bob", by=call("r2"), lease=lease), locking)
        assert type(redeemed) is CodeLocked
        assert isinstance(locked, Done)

    def test_whoever_came_between_the_lock_and_the_redemption(self) -> None:
        world = lockable(max_redemptions_per_code=2)
        locking = lock(user="ann", by=call("r1"), lease=Lease(permits_taken=1))
        world.does(lock(user="bob", lease=Lease(permits_taken=2)))
        lease = Lease(permits_taken=2, held_lock_id=locking.lock_id)
        assert type(world.refuses(redeem(user="ann", by=call("r2"), lease=lease))) is CodeLocked
        world.does(locking)
        redeemed = world.does(redeem(user="ann", by=call("r2"), lease=lease)).event
        assert redeemed.lock_id == locking.lock_id

    @pytest.mark.parametrize("limit", [1, 2])
    def test_a_lock_that_may_never_be_recorded_is_in_nobodys_way_where_there_is_room(
        self, limit: int
    ) -> None:
        world = lockable(max_redemptions_per_code=limit)
        world.does(redeem(lease=Lease(permits_taken=1, held_lock_id=UUID(int=7))))
