"""End users: their own things and nothing else, and no way to find out which codes there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from support.calls import extend, reasons_of
from support.service import (
    Api,
    ServerThread,
    assignments,
    books,
    codes,
    from_now,
    new_codes,
    redemptions,
    refused,
    unique,
)
from support.time_zones import zone_at_noon
from support.token_clients import caller
from support.waiting import until
from support.work_done import WorkDone, work_done

from coupon_service.model.codes import CodeFormat

OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.ASSIGNMENT_POLICY_REQUIRED
LIMITS = books.BookLimits(
    max_redemptions_per_code=1, max_redemptions_per_user=3, max_redemptions=100
)


@pytest.fixture(scope="module")
def business() -> str:
    return unique("business")


@pytest.fixture(scope="module")
def root(guarded: ServerThread, business: str) -> Iterator[Api]:
    """Ann's shop."""
    with caller(guarded.address, "admin", sub="root", business=business) as api:
        yield api


@pytest.fixture(scope="module")
def everywhere(guarded: ServerThread) -> Iterator[Api]:
    """Who sees all businesses."""
    with caller(guarded.address, "admin", sub="root") as api:
        yield api


@pytest.fixture(scope="module")
def ann(guarded: ServerThread, business: str) -> Iterator[Api]:
    """An app that calls with ann's own token."""
    with caller(guarded.address, "self", sub="ann", business=business) as api:
        yield api


@pytest.fixture
def make(root: Api, business: str) -> Callable[..., str]:
    """Makes a code in a book of ann's business."""

    def make(**fields: Any) -> str:
        return code_in(root, business, **fields)

    return make


def closed_today() -> books.Schedule:
    """Opening hours on a day that is neither today nor next to it."""
    other = datetime.now(UTC) + timedelta(days=3)
    day = books.Weekday.ValueType(other.isoweekday())
    window = books.WeeklyWindow(days=[day], opens="00:00", closes="24:00")
    return books.Schedule(time_zone="UTC", windows=[window])


class TestTheirOwn:
    def test_they_check_out_as_everybody_does(self, ann: Api, make: Callable[..., str]) -> None:
        code = make()
        assert ann.validate(code, "ann").valid
        lock = ann.lock(code, "ann")
        extended = ann.redemptions.ExtendLock(
            redemptions.ExtendLockRequest(lock_token=lock.lock_token, ttl=Duration(seconds=300))
        )
        held = redemptions.ListLocksRequest(user_id="ann")
        assert lock.lock.lock_id in [it.lock_id for it in ann.redemptions.ListLocks(held).locks]
        get_lock = redemptions.GetLockRequest(lock_id=lock.lock.lock_id)
        assert ann.redemptions.GetLock(get_lock).lock.user_id == "ann"
        done = ann.redeem(code, "ann", lock_token=extended.lock_token).redemption
        get = redemptions.GetRedemptionRequest(redemption_id=done.redemption_id)
        assert ann.redemptions.GetRedemption(get).redemption == done
        other = ann.lock(make(), "ann")
        assert not ann.unlock(other.lock_token).replayed

    def test_a_list_is_of_their_own_also_when_they_do_not_say_so(
        self, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        order = unique("order")
        code = make(limits=books.BookLimits(max_redemptions_per_code=2))
        for user in ("ann", "bob"):
            root.redeem(code, user, order_id=f"{order}{user}")
        for request in (
            redemptions.ListRedemptionsRequest(code=code),
            redemptions.ListRedemptionsRequest(order_id=f"{order}ann"),
            redemptions.ListRedemptionsRequest(user_id="ann"),
            redemptions.ListRedemptionsRequest(),
        ):
            found = ann.redemptions.ListRedemptions(request).redemptions
            assert {it.user_id for it in found} == {"ann"}
        request = redemptions.ListRedemptionsRequest(order_id=f"{order}bob")
        assert not ann.redemptions.ListRedemptions(request).redemptions

    def test_a_coupon_of_theirs_that_is_of_no_use_is_unknown_when_they_name_it(
        self, root: Api, ann: Api, business: str
    ) -> None:
        codes = new_codes(2)
        book = root.book(codes=codes, business_id=business, assignment_policy=REQUIRED)
        root.assign(codes[0], "ann", business_id=business)
        root.pause(book.book_id)
        assert codes[0] not in [it.code for it in ann.qualify("ann").coupons]
        named = [it for it in ann.qualify("ann", *codes).coupons if it.code in codes]
        assert [reasons_of(it) for it in named] == [["CODE_NOT_FOUND"]] * 2
        for it in named:
            it.code = it.display_code = ""
        assert named[0] == named[1]

    def test_a_repeat_is_answered_as_before(self, ann: Api, make: Callable[..., str]) -> None:
        code, request_id = make(), unique("request")
        first = ann.redeem(code, "ann", request_id=request_id)
        again = ann.redeem(code, "ann", request_id=request_id)
        assert again.replayed
        assert again.redemption == first.redemption

    def test_what_stands_in_the_way_of_a_good_code_is_reported(
        self, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        locked = make()
        root.lock(locked, "bob")
        with refused("CODE_LOCKED") as it:
            ann.redeem(locked, "ann")
        assert it.retry_after_s
        with refused("ORDER_BELOW_MINIMUM"):
            ann.redeem(make(min_order_amount_minor=500), "ann")
        with refused("LOCK_REQUIRED"):
            ann.redeem(make(lock_policy=books.LOCK_POLICY_REQUIRED), "ann")

    def test_when_a_good_code_can_be_used_is_reported(
        self, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        closed = {"schedule": closed_today()}
        with refused("OUTSIDE_SCHEDULE") as it:
            ann.redeem(make(**closed), "ann")
        assert datetime.fromisoformat(it.metadata["next_open_time"]) > datetime.now(UTC)
        with refused("CODE_NOT_FOUND"):
            ann.redeem(make(**closed, assignment_policy=REQUIRED), "ann")
        month = books.PeriodLimits(
            period=books.PERIOD_MONTH, time_zone=zone_at_noon(), max_redemptions=1
        )
        many = books.BookLimits(max_redemptions_per_code=0)
        full = make(period_limits=month, limits=many)
        root.redeem(full, "bob")
        with refused("BOOK_PERIOD_LIMIT_EXCEEDED") as it:
            ann.redeem(full, "ann")
        assert it.metadata.keys() == {"limit", "period", "next_period_time"}

    def test_a_lock_that_was_acquired_in_time_is_honoured(
        self, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        code = make()
        held = ann.lock(code, "ann", ttl_s=60)
        end = from_now(seconds=0.1)
        root.update(held.lock.book_id, end_time=end)
        until(lambda: datetime.now(UTC) > end)
        for call in (ann.redeem, ann.lock):
            with refused("CODE_NOT_FOUND"):
                call(code, "ann")
        with refused("BOOK_EXPIRED"):
            extend(ann, held.lock_token)
        assert reasons_of(ann.validate(code, "ann")) == ["CODE_NOT_FOUND"]
        assert ann.validate(code, "ann", lock_token=held.lock_token).valid
        ann.redeem(code, "ann", lock_token=held.lock_token)

    @pytest.mark.parametrize("given", ["assigned", "redeemed"])
    def test_who_had_the_code_is_told_that_it_is_used_up(
        self, given: str, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        limits = books.BookLimits(max_redemptions_per_code=1, max_redemptions_per_user_per_code=1)
        code = make(limits=limits)
        if given == "assigned":
            root.assign(code, "ann")
            root.redeem(code, "bob")
        else:
            ann.redeem(code, "ann")
        with refused("CODE_ALREADY_REDEEMED"):
            ann.redeem(code, "ann")


NAMING: dict[str, Callable[[Api, str], object]] = {
    "ValidateCode": lambda api, code: api.validate(code, "bob"),
    "LockCode": lambda api, code: api.lock(code, "bob"),
    "RedeemCode": lambda api, code: api.redeem(code, "bob"),
    "QualifyCoupons": lambda api, _: api.qualify("bob"),
    "ListUserCoupons": lambda api, _: api.assignments.ListUserCoupons(
        assignments.ListUserCouponsRequest(user_id="bob")
    ),
    "ListLocks": lambda api, _: api.redemptions.ListLocks(
        redemptions.ListLocksRequest(user_id="bob")
    ),
    "ListRedemptions": lambda api, _: api.redemptions.ListRedemptions(
        redemptions.ListRedemptionsRequest(user_id="bob")
    ),
}
"""Calls for somebody else."""


class TestOthers:
    @pytest.mark.parametrize("name", NAMING)
    def test_no_user_but_themselves_can_be_named(
        self, name: str, ann: Api, make: Callable[..., str]
    ) -> None:
        with refused("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED):
            NAMING[name](ann, make())

    def test_the_locks_of_a_book_are_not_listed(
        self, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        book = root.get_code(make()).book_id
        with refused("PERMISSION_DENIED"):
            ann.redemptions.ListLocks(redemptions.ListLocksRequest(book_id=book))

    def test_their_locks_and_redemptions_do_not_exist(
        self, root: Api, ann: Api, make: Callable[..., str]
    ) -> None:
        lock = root.lock(make(), "bob")
        redemption = root.redeem(make(), "bob").redemption
        lock_id = lock.lock.lock_id
        with refused("LOCK_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
            ann.redemptions.GetLock(redemptions.GetLockRequest(lock_id=lock_id))
        with refused("LOCK_NOT_FOUND"):
            ann.redemptions.UnlockCode(redemptions.UnlockCodeRequest(lock_id=lock_id))
        with refused("LOCK_NOT_FOUND"):
            ann.unlock(lock.lock_token)
        with refused("LOCK_TOKEN_MISMATCH"):
            ann.redemptions.ExtendLock(redemptions.ExtendLockRequest(lock_token=lock.lock_token))
        with refused("REDEMPTION_NOT_FOUND", grpc.StatusCode.NOT_FOUND):
            ann.redemptions.GetRedemption(
                redemptions.GetRedemptionRequest(redemption_id=redemption.redemption_id)
            )
        held = root.redemptions.GetLock(redemptions.GetLockRequest(lock_id=lock_id)).lock
        assert held == lock.lock

    def test_a_namesake_in_another_business_is_somebody_else(
        self, guarded: ServerThread, root: Api, make: Callable[..., str]
    ) -> None:
        code = make()
        root.assign(code, "ann")
        lock = root.lock(code, "ann")
        redemption = root.redeem(make(), "ann").redemption
        with caller(guarded.address, "self", sub="ann", business=unique("other")) as namesake:
            coupons = assignments.ListUserCouponsRequest(user_id="ann")
            assert not namesake.assignments.ListUserCoupons(coupons).coupons
            locks = redemptions.ListLocksRequest(user_id="ann")
            assert not namesake.redemptions.ListLocks(locks).locks
            assert not namesake.redemptions.ListRedemptions(
                redemptions.ListRedemptionsRequest()
            ).redemptions
            with refused("LOCK_NOT_FOUND"):
                namesake.unlock(lock.lock_token)
            with refused("REDEMPTION_NOT_FOUND"):
                namesake.redemptions.GetRedemption(
                    redemptions.GetRedemptionRequest(redemption_id=redemption.redemption_id)
                )
            with refused("CODE_NOT_FOUND"):
                namesake.redeem(code, "ann", lock_token=lock.lock_token)


# --- codes that they cannot use -----------------------------------------------------------------


def unknown(root: Api, business: str) -> str:
    return new_codes(1)[0]


def code_in(root: Api, business: str, **fields: Any) -> str:
    values: dict[str, Any] = {"business_id": business, "lock_policy": OPTIONAL, "limits": LIMITS}
    return root.code(**(values | fields))


def of_another_business(root: Api, business: str) -> str:
    return code_in(root, unique("other"))


def of_somebody_else(root: Api, business: str) -> str:
    code = code_in(root, business, assignment_policy=REQUIRED)
    root.assign(code, "bob")
    return code


def of_nobody_yet(root: Api, business: str) -> str:
    return code_in(root, business, assignment_policy=REQUIRED)


def taken_away(root: Api, business: str) -> str:
    code = code_in(root, business, assignment_policy=REQUIRED)
    root.assign(code, "ann")
    root.revoke(code, "ann")
    return code


def disabled(root: Api, business: str) -> str:
    code = code_in(root, business)
    root.disable(code)
    return code


def own_but_disabled(root: Api, business: str) -> str:
    code = code_in(root, business)
    root.assign(code, "ann")
    root.disable(code)
    return code


def used_up_by_somebody_else(root: Api, business: str) -> str:
    code = code_in(root, business)
    root.redeem(code, "bob", order_id="order 1")
    return code


def used_up_of_many(root: Api, business: str) -> str:
    code = code_in(root, business, limits=books.BookLimits(max_redemptions_per_code=2))
    for user in ("bob", "carol"):
        root.redeem(code, user)
    return code


def of_a_draft(root: Api, business: str) -> str:
    (code,) = new_codes(1)
    book = root.draft(business_id=business, lock_policy=OPTIONAL, limits=LIMITS)
    root.import_codes(book.book_id, [code])
    return code


def paused(root: Api, business: str) -> str:
    code = code_in(root, business)
    root.pause(root.get_code(code).book_id)
    return code


def not_started(root: Api, business: str) -> str:
    return code_in(root, business, start_time=from_now(hours=1))


def not_started_itself(root: Api, business: str) -> str:
    (code,) = new_codes(1)
    book = root.book(business_id=business, lock_policy=OPTIONAL, limits=LIMITS)
    terms: dict[str, Any] = {"start_time": from_now(hours=1)}
    root.import_codes(book.book_id, [codes.NewCode(code=code, terms=codes.CodeTerms(**terms))])
    return code


def of_a_book_that_has_ended(root: Api, business: str) -> str:
    code = code_in(root, business)
    root.update(root.get_code(code).book_id, end_time=from_now(seconds=-1))
    return code


def without_locking(root: Api, business: str) -> str:
    return code_in(root, business, assignment_policy=REQUIRED, lock_policy=books.LOCK_POLICY_OFF)


UNUSABLE: list[Any] = [
    pytest.param(of_another_business, marks=pytest.mark.one_shard),
    of_somebody_else,
    of_nobody_yet,
    taken_away,
    disabled,
    own_but_disabled,
    used_up_by_somebody_else,
    used_up_of_many,
    of_a_draft,
    paused,
    not_started,
    not_started_itself,
    of_a_book_that_has_ended,
    without_locking,
]
"""How a code can be there and not be for ann to use."""

Attempt = Callable[[Api, str], Any]
ATTEMPTS: dict[str, Attempt] = {
    "validate": lambda api, code: api.validate(code, "ann", order_id="order 1"),
    "validate with a lock": lambda api, code: api.validate(code, "ann", lock_token="bm90IG91cnM"),
    "lock": lambda api, code: api.lock(code, "ann"),
    "redeem": lambda api, code: api.redeem(code, "ann", order_id="order 1"),
    "redeem with a lock": lambda api, code: api.redeem(code, "ann", lock_token="bm90IG91cnM"),
}


@pytest.fixture
def work(guarded: ServerThread) -> Iterator[WorkDone]:
    with work_done(guarded) as recorded:
        yield recorded


@pytest.mark.parametrize("kind", UNUSABLE, ids=lambda kind: kind.__name__)
def test_a_code_that_they_cannot_use_looks_as_if_it_did_not_exist(
    kind: Callable[[Api, str], str],
    root: Api,
    everywhere: Api,
    ann: Api,
    business: str,
    work: WorkDone,
) -> None:
    maker = everywhere if kind is of_another_business else root
    code, missing = kind(maker, business), unknown(root, business)
    for name, attempt in ATTEMPTS.items():
        answer, done = work.of(partial(attempt, ann, code))
        expected, done_for_nothing = work.of(partial(attempt, ann, missing))
        assert answer == expected, name
        assert done == done_for_nothing, name
        assert done.count("book") == 1, "of a code that does not exist another one is read"
        assert "COMMIT" not in done, "it waits for the disk, also where only rows were locked"
        if isinstance(answer, redemptions.ValidateCodeResponse):
            assert reasons_of(answer) == ["CODE_NOT_FOUND"]
        else:
            assert answer[0] is grpc.StatusCode.NOT_FOUND  # type: ignore[index]


def test_in_the_book_that_they_name_as_well(root: Api, ann: Api, business: str) -> None:
    code = of_somebody_else(root, business)
    assert_same_in_book(ann, root.get_code(code).book_id, code, unknown(root, business))


def test_in_a_book_that_tells_what_was_mistyped_as_well(root: Api, ann: Api, business: str) -> None:
    form: dict[str, Any] = {"length": 18, "alphabet": "0123456789ABCDEFT", "check_character": True}
    (stem,) = new_codes(1)
    typed = [stem[:-1] + last for last in "012"]
    code, missing, *_ = [it for it in typed if not CodeFormat(**form).matches(it)]
    book = root.draft(business_id=business, lock_policy=OPTIONAL, assignment_policy=REQUIRED)
    root.import_codes(book.book_id, [code])
    root.update(book.book_id, code_format=books.CodeFormat(**form))
    root.activate(book.book_id)
    assert_same_in_book(ann, book.book_id, code, missing, "CODE_CHECKSUM_INVALID")


def assert_same_in_book(
    ann: Api, book_id: str, code: str, missing: str, reason: str = "CODE_NOT_FOUND"
) -> None:
    """Assert that a code that ann cannot use and one that is not there are told alike."""
    for attempt in (Api.redeem, Api.lock):
        answers = []
        for each in (code, missing):
            with refused(reason) as it:
                attempt(ann, each, "ann", book_id=book_id)
            answers.append((it.status, it.error.details(), it.metadata))  # type: ignore[attr-defined]
        assert answers[0] == answers[1]
    for each in (code, missing):
        assert reasons_of(ann.validate(each, "ann", book_id=book_id)) == [reason]


def test_a_code_of_their_own_that_has_expired_looks_so_too(
    guarded: ServerThread, root: Api, business: str
) -> None:
    code = code_in(
        root, business, assignment_policy=REQUIRED, assigned_code_validity=Duration(seconds=60)
    )
    root.assign(code, "ann")
    settings = guarded.settings.model_copy(update={"sweep_interval_ms": 3_600_000})
    with (
        ServerThread(settings, lambda: datetime.now(UTC) + timedelta(minutes=2)) as later,
        caller(later.address, "self", sub="ann", business=business) as ann,
    ):
        for attempt in ("lock", "redeem"):
            with refused("CODE_NOT_FOUND"):
                ATTEMPTS[attempt](ann, code)
        assert reasons_of(ann.validate(code, "ann")) == ["CODE_NOT_FOUND"]
    with caller(guarded.address, "self", sub="ann", business=business) as ann:
        assert ann.validate(code, "ann").valid


@pytest.mark.parametrize("kind", UNUSABLE[1:], ids=lambda kind: kind.__name__)
def test_services_are_told_the_reason(
    kind: Callable[[Api, str], str], guarded: ServerThread, root: Api, business: str
) -> None:
    code = kind(root, business)
    with caller(guarded.address, "redeemer", business=business) as shop:
        assert reasons_of(shop.validate(code, "ann"))[0] not in ("", "CODE_NOT_FOUND")
