"""What a caller may see: codes and books of its own business, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from unit.rules.commands import (
    assign,
    call,
    disable,
    enable,
    lock,
    redeem,
    revoke,
    token,
    unlock,
    user_call,
)
from unit.rules.kinds import KINDS, world_for_all_kinds
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, PERMIT, World, active, book

from coupon_service.errors import (
    BookNotFound,
    CodeAlreadyRedeemed,
    CodeChecksumInvalid,
    CodeNotFound,
    LockNotFound,
    OrderAlreadyRedeemed,
    RedemptionNotFound,
)
from coupon_service.model import (
    AssignmentPolicy,
    AssignmentState,
    BookState,
    Code,
    CodeState,
    Command,
    LockPolicy,
)
from coupon_service.model.codes import CodeFormat, generate
from coupon_service.rules import hidden_key

OTHER_BOOK = UUID(int=2)

USED_UP = Code("A", BOOK_ID, CodeState.REDEEMED, 1, 0)


NOT_FOUND = {
    "rollback": RedemptionNotFound,
    "extend": LockNotFound,
    "unlock": LockNotFound,
    "assign_random": BookNotFound,
}


@pytest.mark.parametrize("kind", KINDS)
class TestBusiness:
    def test_what_belongs_to_another_business_is_not_there(self, kind: str) -> None:
        world = world_for_all_kinds()
        error = world.refuses(KINDS[kind](world, call(business="another")))
        assert type(error) is NOT_FOUND.get(kind, CodeNotFound)
        assert error.metadata == {}

    @pytest.mark.parametrize("business", ["business", ""])
    def test_what_is_its_own_is_and_some_callers_see_all(self, kind: str, business: str) -> None:
        world = world_for_all_kinds()
        world.does(KINDS[kind](world, call(business=business)))


@pytest.mark.parametrize("make", [redeem, lock, assign, revoke, disable, enable])
def test_a_code_that_never_was_is_not_found(make: Callable[..., Command]) -> None:
    assert type(World().refuses(make("unknown"))) is CodeNotFound


class TestNamedBook:
    @pytest.mark.parametrize("make", [redeem, lock, assign])
    def test_a_code_has_to_be_in_the_book_that_is_named(self, make: Callable[..., Command]) -> None:
        optional = LockPolicy.OPTIONAL
        world = World(book(lock_policy=optional), book(OTHER_BOOK, lock_policy=optional))
        lease: dict[str, Any] = {"lease": PERMIT} if make is redeem else {}
        for book_id in (OTHER_BOOK, UUID(int=9)):
            assert type(world.refuses(make("A", book_id=book_id, **lease))) is CodeNotFound
        world.does(make("A", book_id=BOOK_ID, **lease))


class TestCheckCharacter:
    right = generate(CodeFormat(check_character=True), 1, random=bytes)[0]
    wrong = right[:-1] + ("3" if right[-1] == "2" else "2")

    def checked(self, **changes: Any) -> World:
        return World(book(code_format=CodeFormat(check_character=True), **changes), codes="A")

    @pytest.mark.parametrize("make", [redeem, lock, assign])
    def test_a_mistyped_code_is_distinguished_from_an_unknown_one(
        self, make: Callable[..., Command]
    ) -> None:
        world = self.checked()
        mistyped = world.refuses(make(self.wrong, book_id=BOOK_ID))
        assert type(mistyped) is CodeChecksumInvalid
        assert type(world.refuses(make(self.right, book_id=BOOK_ID))) is CodeNotFound

    def test_only_where_the_book_is_named(self) -> None:
        assert type(self.checked().refuses(redeem(self.wrong))) is CodeNotFound

    def test_only_where_the_book_has_a_check_character(self) -> None:
        assert type(World().refuses(redeem(self.wrong, book_id=BOOK_ID))) is CodeNotFound

    def test_only_of_a_book_that_the_caller_sees(self) -> None:
        stranger = call(business="another")
        error = self.checked().refuses(redeem(self.wrong, by=stranger, book_id=BOOK_ID))
        assert type(error) is CodeNotFound
        owner = call(business="business")
        error = self.checked().refuses(redeem(self.wrong, by=owner, book_id=BOOK_ID))
        assert type(error) is CodeChecksumInvalid

    def test_a_code_that_is_there_needs_none(self) -> None:
        self.checked().does(redeem("A", book_id=BOOK_ID))

    @pytest.mark.parametrize("make", [redeem, lock])
    def test_of_one_that_is_hidden_the_same_is_said_as_of_one_that_is_not_there(
        self, make: Callable[..., Command]
    ) -> None:
        for code in self.right, self.wrong:
            there = self.checked(state=BookState.PAUSED)
            there.put(Code(code, BOOK_ID, CodeState.AVAILABLE, 0, 0))
            attempt = make(code, by=user_call(), book_id=BOOK_ID)
            error, expected = there.refuses(attempt), self.checked().refuses(attempt)
            assert (type(error), error.args) == (type(expected), expected.args)


class TestEndUsers:
    """A code that a user cannot use is told no more of than one that does not exist."""

    @pytest.mark.parametrize("make", [redeem, lock])
    @pytest.mark.parametrize(
        "world",
        [
            World(book(state=BookState.PAUSED)),
            World(book(start_time=NOW + MINUTE)),
            World(book(end_time=NOW)),
            World(book(assignment_policy=AssignmentPolicy.REQUIRED)),
        ],
        ids=["paused", "not started", "ended", "not assigned"],
    )
    def test_a_book_that_is_not_for_use(self, world: World, make: Callable[..., Command]) -> None:
        error = world.refuses(make("A", by=user_call()))
        assert (type(error), error.args, error.metadata) == (
            CodeNotFound,
            CodeNotFound().args,
            {},
        )
        assert type(world.refuses(redeem("A"))) is not CodeNotFound

    @pytest.mark.parametrize("row", [USED_UP, Code("A", BOOK_ID, CodeState.DISABLED, 0, 0)])
    def test_a_code_that_is_not_for_use(self, row: Code) -> None:
        world = World()
        world.put(row)
        assert type(world.refuses(redeem("A", by=user_call()))) is CodeNotFound
        assert type(world.refuses(redeem("A"))) is not CodeNotFound

    def test_an_assignment_that_has_expired(self) -> None:
        world = World()
        world.put(active(expire_time=NOW))
        assert type(world.refuses(redeem("A", by=user_call()))) is CodeNotFound

    @pytest.mark.parametrize(
        "assignment",
        [active(), active(state=AssignmentState.UNASSIGNED, redemptions=1)],
        ids=["assigned", "used"],
    )
    def test_who_has_to_do_with_a_code_is_told_that_it_is_used_up(self, assignment: Any) -> None:
        world = World()
        world.put(USED_UP)
        world.put(assignment)
        assert type(world.refuses(redeem("A", by=user_call()))) is CodeAlreadyRedeemed

    def test_who_had_to_do_with_it_is_not(self) -> None:
        world = World()
        world.put(USED_UP)
        world.put(active(state=AssignmentState.REVOKED))
        assert type(world.refuses(redeem("A", by=user_call()))) is CodeNotFound

    def test_one_that_is_used_up_is_reported_to_who_used_it_for_the_same_order(self) -> None:
        world = World()
        world.does(redeem("A", by=user_call(), order="o1"))
        for order, reason in ("o1", OrderAlreadyRedeemed), ("o2", CodeNotFound), ("", CodeNotFound):
            assert type(world.refuses(redeem("A", by=user_call(), order=order))) is reason
        error = world.refuses(redeem("A", "bob", by=user_call("bob"), order="o1"))
        assert type(error) is CodeNotFound

    def test_a_repeat_comes_first(self) -> None:
        world = World()
        first = world.does(redeem("A", by=user_call(request="r")))
        again = world.does(redeem("A", by=user_call(request="r")))
        assert again.replayed
        assert again.event == first.event

    def test_what_was_hidden_when_it_was_loaded_stays_so_for_this_user(self) -> None:
        world = World()
        world.state.hidden = frozenset({hidden_key(redeem("A"), world.code())})
        assert type(world.refuses(redeem("A", by=user_call()))) is CodeNotFound
        world.copy().does(redeem("A", by=call()))
        world.does(redeem("A", "bob", by=user_call("bob")))

    def test_what_an_earlier_command_of_the_batch_used_up(self) -> None:
        _, second = World().batch(redeem("A", "bob"), redeem("A", by=user_call()))
        assert type(second) is CodeNotFound

    def test_a_code_that_they_have_locked_in_time_is_there_with_its_token(self) -> None:
        world = World(book(lock_policy=LockPolicy.OPTIONAL))
        locked = world.does(lock("A", by=user_call())).event
        world.change_book(end_time=NOW + MOMENT)
        world.now += MOMENT
        assert type(world.refuses(redeem("A", by=user_call(), lease=PERMIT))) is CodeNotFound
        shown = redeem("A", by=user_call(), lock=token(locked))
        world.state.hidden = frozenset({hidden_key(redeem("A", by=user_call()), world.code())})
        world.copy().does(shown)
        ended = token(locked, world.now)  # that of before an extension
        world.state.hidden = frozenset(
            {hidden_key(redeem("A", by=user_call(), lock=ended), world.code())}
        )
        world.does(shown)

    def test_one_that_was_used_up_for_one_order_is_not_hidden_with_another(self) -> None:
        world = World()
        world.does(redeem("A", by=user_call(), order="o1"))
        world.state.hidden = frozenset(
            {hidden_key(redeem("A", by=user_call(), order="o2"), world.code())}
        )
        error = world.refuses(redeem("A", by=user_call(), order="o1"))
        assert type(error) is OrderAlreadyRedeemed

    def test_one_that_they_have_locked_no_more_is_not(self) -> None:
        world = World(book(lock_policy=LockPolicy.OPTIONAL, max_redemptions_per_code=2))
        locked = world.does(lock("A", by=user_call())).event
        world.does(unlock(locked))
        world.change_book(end_time=NOW + MOMENT)
        world.now += MOMENT
        shown = redeem("A", by=user_call(), lock=token(locked))
        assert type(world.refuses(shown)) is CodeNotFound
