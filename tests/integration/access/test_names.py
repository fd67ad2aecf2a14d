"""Users, orders and businesses are compared in NFC: one name is one, however it is spelled."""

from __future__ import annotations

import unicodedata
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psycopg
import pytest
from support.calls import batch, item, outcomes_of, tried
from support.invariants import assert_adds_up
from support.service import (
    BUSINESS,
    Api,
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.token_clients import caller

from coupon_service.rpc.convert import fields

OPTIONAL = books.LOCK_POLICY_OPTIONAL
ONCE_A_USER = books.BookLimits(max_redemptions_per_code=0, max_redemptions_per_user=1)
UNLIMITED = books.BookLimits(max_redemptions_per_code=0)


def two_spellings(name: str = "josé") -> tuple[str, str]:
    """A new name, composed and decomposed."""
    text = unique(name)
    return unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)


@pytest.fixture(params=["composed first", "decomposed first"])
def jose(request: pytest.FixtureRequest) -> tuple[str, str]:
    """One user, spelled in two ways."""
    composed, decomposed = two_spellings()
    return (composed, decomposed) if request.param == "composed first" else (decomposed, composed)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# --- one user -----------------------------------------------------------------------------------


def test_a_limit_a_user_is_one_for_every_spelling(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    one, other = new_codes(2)
    api.book(codes=[one, other], limits=ONCE_A_USER)
    assert api.redeem(one, first).redemption.user_id == nfc(first)
    with refused("USER_LIMIT_EXCEEDED"):
        api.redeem(other, second)


def test_an_assignment_is_found_by_every_spelling(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    (code,) = new_codes(1)
    api.book(codes=[code], assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED)
    assert api.assign(code, first).assignment.user_id == nfc(first)
    with refused("CODE_ALREADY_ASSIGNED"):
        api.assign(code, second)
    mine = assignments.ListUserCouponsRequest(user_id=second)
    (coupon,) = api.assignments.ListUserCoupons(mine).coupons
    assert (coupon.assignment.code, coupon.assignment.user_id) == (code, nfc(first))
    assert api.redeem(code, second).redemption.code == code


def test_a_revocation_finds_it_as_well(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    code = api.code()
    api.assign(code, first)
    assert api.revoke(code, second).assignment.user_id == nfc(first)


def test_a_lock_is_held_by_every_spelling_of_its_user(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    code = api.code(lock_policy=OPTIONAL)
    held = api.lock(code, first)
    again = api.lock(code, second)
    assert again.lock.lock_id == held.lock.lock_id
    listed = redemptions.ListLocksRequest(user_id=second)
    assert [it.lock_id for it in api.redemptions.ListLocks(listed).locks] == [held.lock.lock_id]
    assert api.redeem(code, second, lock_token=held.lock_token).redemption.code == code


def test_an_order_redeems_a_code_once_however_it_is_spelled(
    api: Api, jose: tuple[str, str]
) -> None:
    first, second = jose
    code = api.code(limits=UNLIMITED)
    done = api.redeem(code, "u", order_id=first).redemption
    assert done.order_id == nfc(first)
    with refused("ORDER_ALREADY_REDEEMED") as it:
        api.redeem(code, "v", order_id=second)
    assert it.metadata == {"redemption_id": done.redemption_id}


def test_a_repeat_may_be_spelled_otherwise(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    code = api.code(limits=UNLIMITED)
    request_id = unique("request")
    done = api.redeem(code, first, order_id=first, request_id=request_id)
    again = api.redeem(code, second, order_id=second, request_id=request_id)
    assert again.replayed
    assert again.redemption == done.redemption


def test_a_batch_names_every_user_once_and_shares_limits(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    names = new_codes(3)
    book = api.book(codes=names, limits=ONCE_A_USER)
    request = assignments.BatchAssignRandomCodesRequest(book_id=book.book_id, user_ids=jose)
    with refused("INVALID_ARGUMENT") as it:
        api.assignments.BatchAssignRandomCodes(request)
    assert it.fields == ["user_ids[1]"]
    answer = batch(api, [item(names[0], first), item(names[1], second)])
    assert outcomes_of(answer) == ["OK", "USER_LIMIT_EXCEEDED"]


def test_upper_and_lower_case_are_two_users(api: Api) -> None:
    composed, _ = two_spellings()
    one, other = new_codes(2)
    api.book(codes=[one, other], limits=ONCE_A_USER)
    api.redeem(one, composed)
    assert api.redeem(other, composed.upper()).redemption.user_id == composed.upper()


def test_lists_find_a_name_by_every_spelling(api: Api, jose: tuple[str, str]) -> None:
    first, second = jose
    code = api.code(limits=UNLIMITED)
    done = api.redeem(code, first, order_id=first).redemption
    named: list[dict[str, Any]] = [
        {"user_id": second},
        {"order_id": second},
        {"user_id": first, "code": code},
    ]
    for filters in named:
        found = api.redemptions.ListRedemptions(redemptions.ListRedemptionsRequest(**filters))
        assert [it.redemption_id for it in found.redemptions] == [done.redemption_id]
        (event,) = api.events(**filters)
        assert (event.user_id, event.order_id) == (nfc(first), nfc(first))


def test_an_id_has_up_to_128_characters_in_nfc(api: Api) -> None:
    longest = "é" * 128
    code = api.code()
    assert api.redeem(code, unicodedata.normalize("NFD", longest)).redemption.user_id == longest
    for user_id in ("é" * 129, "e\u0301" * 129, "e" + "\u0301" * 5_000):
        with refused("INVALID_ARGUMENT") as it:
            api.redeem(code, user_id)
        assert it.fields == ["user_id"]


# --- tokens and businesses ----------------------------------------------------------------------


def test_the_claims_of_a_token_are_compared_in_nfc(
    guarded: ServerThread, jose: tuple[str, str]
) -> None:
    first, second = jose
    shop, same_shop = two_spellings("café")
    (code,) = new_codes(1)
    with (
        caller(guarded.address, "admin") as admin,
        caller(guarded.address, "admin", business=same_shop) as owner,
        caller(guarded.address, "self", sub=first, business=same_shop) as user,
    ):
        book = admin.book(codes=[code], business_id=shop)
        assert owner.get_book(book.book_id).business_id == nfc(shop)
        listed = books.ListCouponBooksRequest(business_id=same_shop)
        assert [it.book_id for it in owner.books.ListCouponBooks(listed).coupon_books] == [
            book.book_id
        ]
        assert owner.draft(business_id=shop).business_id == nfc(shop)
        admin.assign(code, second, business_id=shop)
        assert user.redeem(code, second).redemption.user_id == nfc(first)


def test_guesses_are_counted_for_the_name(
    limiting_server: ServerThread, jose: tuple[str, str]
) -> None:
    with caller(limiting_server.address, "redeemer") as shop:
        outcomes: list[str] = []
        for n, code in enumerate(new_codes(11)):
            outcomes.append(tried(lambda code=code, user=jose[n % 2]: shop.redeem(code, user)))
    assert outcomes == ["CODE_NOT_FOUND"] * 10 + ["RATE_LIMITED"]


# --- what was written before --------------------------------------------------------------------


@pytest.fixture(scope="module")
def upgraded(new_database: Any, redis_server_url: str) -> Iterator[ServerThread]:
    """A server on a database of its own, which an earlier version has used."""
    with (
        new_database() as database_url,
        ServerThread(settings_for(database_url, redis_server_url)) as it,
    ):
        yield it


@pytest.fixture(scope="module")
def old(upgraded: ServerThread) -> Iterator[Api]:
    client = Api(upgraded.address)
    yield client
    client.close()


@contextmanager
def earlier_version() -> Generator[None]:
    """Names are taken as they come, as until now."""
    with mock.patch.object(fields, "canonical_id", str):
        yield


SPELLED_OTHERWISE = """
SELECT user_id FROM coupon_assignments WHERE user_id IS NOT NFC NORMALIZED
UNION SELECT user_id FROM coupon_user_counters WHERE user_id IS NOT NFC NORMALIZED
UNION SELECT business_id FROM coupon_books WHERE business_id IS NOT NFC NORMALIZED
"""


def merge(server: ServerThread) -> None:
    """What the migration does, and what is to hold after it."""
    url = server.settings.database_url
    assert url is not None
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        connection.execute("CALL coupon_merge_names()")
        assert connection.execute(SPELLED_OTHERWISE).fetchall() == []
        assert_adds_up(connection)


def one(server: ServerThread, query: str, *parameters: object) -> tuple[Any, ...]:
    url = server.settings.database_url
    assert url is not None
    with psycopg.connect(url.get_secret_value()) as connection:
        rows = connection.execute(query.encode(), parameters).fetchall()
    (row,) = rows
    return row


def test_sums_above_a_limit_stay_and_nothing_more_is_redeemed(
    upgraded: ServerThread, old: Api
) -> None:
    composed, decomposed = two_spellings()
    names = new_codes(4)
    limits = books.BookLimits(
        max_redemptions_per_code=0,
        max_redemptions_per_user=2,
        max_redemptions_per_user_per_code=1,
    )
    book = old.book(codes=names, limits=limits)
    with earlier_version():
        undone = old.redeem(names[0], composed).redemption
        old.redeem(names[0], decomposed)
        old.redeem(names[1], composed)
        old.redeem(names[2], decomposed)
    merge(upgraded)
    assert one(
        upgraded,
        "SELECT user_id, redemptions, redemption_limit FROM coupon_user_counters"
        " WHERE book_id = %s",
        book.book_id,
    ) == (composed, 4, 4)
    assert one(
        upgraded,
        "SELECT user_id, redemptions, redemption_limit FROM coupon_assignments WHERE code = %s",
        names[0],
    ) == (composed, 2, 2)
    for user_id in (composed, decomposed):
        for code in (names[0], names[3]):
            with refused("USER_LIMIT_EXCEEDED"):
                old.redeem(code, user_id)
    old.rollback(undone.redemption_id)
    with refused("USER_LIMIT_EXCEEDED"):
        old.redeem(names[3], decomposed)
    merge(upgraded)


def test_two_assignments_of_a_code_to_one_name_become_one(upgraded: ServerThread, old: Api) -> None:
    composed, decomposed = two_spellings()
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=3, max_assignments_per_user=1)
    book = old.book(codes=[code], limits=limits)
    with earlier_version():
        old.assign(code, composed)
        kept = old.assign(code, decomposed).assignment
        old.redeem(code, composed)
    merge(upgraded)
    mine = assignments.ListUserCouponsRequest(user_id=decomposed)
    (coupon,) = old.assignments.ListUserCoupons(mine).coupons
    assert coupon.assignment.user_id == composed
    assert coupon.assignment.redemption_count == 1
    assert coupon.assignment.assign_time == kept.assign_time
    assert old.get_code(code).assignment_count == 1
    assert old.stats(book.book_id).assignment_count == 1
    revoked = old.events(code=code, types=[audit.AUDIT_EVENT_TYPE_REVOKED])
    assert [(it.caller, dict(it.metadata)) for it in revoked] == [
        ("migration", {"same_user_as": composed})
    ]
    with refused("CODE_ALREADY_ASSIGNED"):
        old.assign(code, composed)
    old.revoke(code, decomposed)
    merge(upgraded)


def test_a_name_that_had_one_spelling_only_gets_the_other(upgraded: ServerThread, old: Api) -> None:
    composed, decomposed = two_spellings()
    names = new_codes(2)
    limits = books.BookLimits(max_redemptions_per_user=2, max_assignments_per_user=2)
    old.book(codes=names, limits=limits, assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED)
    with earlier_version():
        for code in names:
            old.assign(code, decomposed)
        revoked = old.revoke(names[1], decomposed).assignment
    merge(upgraded)
    mine = assignments.ListUserCouponsRequest(user_id=composed)
    states = {
        it.assignment.code: it.assignment.state
        for it in old.assignments.ListUserCoupons(mine).coupons
    }
    assert states == {names[0]: assignments.ASSIGNMENT_STATE_ACTIVE, names[1]: revoked.state}
    assert old.redeem(names[0], composed).counts.user_code_redemption_count == 1


@pytest.mark.skipif(bool(BUSINESS), reason="in the version before no code had a business")
def test_repeats_of_before_are_answered_in_both_spellings(upgraded: ServerThread, old: Api) -> None:
    composed, decomposed = two_spellings()
    code, locked, given, revoked = names = new_codes(4)
    old.book(codes=names, lock_policy=OPTIONAL, limits=UNLIMITED)
    book_id = old.book(codes=new_codes(4), limits=UNLIMITED).book_id
    ids = {name: unique("request") for name in ("redeem", "lock", "assign", "random", "revoke")}
    with earlier_version():
        done = old.redeem(code, decomposed, order_id=composed, request_id=ids["redeem"])
        held = old.lock(locked, decomposed, request_id=ids["lock"])
        old.assign(given, decomposed, request_id=ids["assign"])
        random = old.assign_random(book_id, decomposed, request_id=ids["random"]).assignment
        old.assign(revoked, decomposed)
        old.revoke(revoked, decomposed, request_id=ids["revoke"])
    merge(upgraded)
    events = len(old.events(user_id=composed))
    for name in (decomposed, composed):
        again = old.redeem(code, name, order_id=name, request_id=ids["redeem"])
        assert again.replayed
        assert again.redemption.redemption_id == done.redemption.redemption_id
        assert (again.redemption.user_id, again.redemption.order_id) == (composed, composed)
        lock = old.lock(locked, name, request_id=ids["lock"])
        assert lock.replayed
        assert lock.lock.lock_id == held.lock.lock_id
        for repeated, which in (
            (old.assign(given, name, request_id=ids["assign"]), given),
            (old.assign_random(book_id, name, request_id=ids["random"]), random.code),
            (old.revoke(revoked, name, request_id=ids["revoke"]), revoked),
        ):
            assert repeated.replayed
            assert (repeated.assignment.user_id, repeated.assignment.code) == (composed, which)
    assert len(old.events(user_id=composed)) == events == 6
    with refused("REQUEST_ID_REUSED"):
        old.redeem(code, composed, order_id="another", request_id=ids["redeem"])


def test_orders_and_lists_of_before_are_found_in_both_spellings(
    upgraded: ServerThread, old: Api
) -> None:
    composed, decomposed = two_spellings()
    code = old.code(limits=UNLIMITED)
    with earlier_version():
        ids = [old.redeem(code, decomposed, order_id=f"{decomposed}-{n}").redemption for n in "123"]
    merge(upgraded)
    ids.append(old.redeem(code, composed, order_id=f"{composed}-4").redemption)
    wanted = [it.redemption_id for it in reversed(ids)]
    for name in (decomposed, composed):
        with refused("ORDER_ALREADY_REDEEMED"):
            old.redeem(code, "somebody else", order_id=f"{name}-1")
        listed = redemptions.ListRedemptionsRequest(user_id=name, page_size=1)
        found: list[str] = []
        while True:
            page = old.redemptions.ListRedemptions(listed)
            found += [it.redemption_id for it in page.redemptions]
            listed.page_token = page.next_page_token
            if not listed.page_token:
                break
        assert found == wanted
        assert len(old.events(order_id=f"{name}-2")) == 1
    rolled_back = old.rollback(ids[0].redemption_id).redemption
    assert rolled_back.order_id == f"{composed}-1"
    assert old.redeem(code, "somebody else", order_id=f"{composed}-1").redemption.code == code


def test_a_lock_of_before_is_honoured(upgraded: ServerThread, old: Api) -> None:
    composed, decomposed = two_spellings()
    code = old.code(lock_policy=books.LOCK_POLICY_REQUIRED)
    with earlier_version():
        held = old.lock(code, decomposed)
    merge(upgraded)
    extend = redemptions.ExtendLockRequest(lock_token=held.lock_token, request_id="r")
    extended = old.redemptions.ExtendLock(extend)
    assert extended.lock.user_id == composed
    done = old.redeem(code, composed, lock_token=held.lock_token).redemption
    assert (done.lock_id, done.user_id) == (held.lock.lock_id, composed)


def test_a_book_of_before_belongs_to_its_business_and_is_made_once(
    upgraded: ServerThread, old: Api
) -> None:
    composed, decomposed = two_spellings("café")
    book = books.CouponBook(
        business_id=decomposed,
        name="n",
        discount=books.Discount(benefit=books.Benefit(description="a gift")),
    )
    request = books.CreateCouponBookRequest(coupon_book=book, request_id=unique("request"))
    with earlier_version():
        made = old.books.CreateCouponBook(request).coupon_book
    merge(upgraded)
    for name in (decomposed, composed):
        request.coupon_book.business_id = name
        again = old.books.CreateCouponBook(request)
        assert again.replayed
        assert (again.coupon_book.book_id, again.coupon_book.business_id) == (
            made.book_id,
            composed,
        )
        listed = books.ListCouponBooksRequest(business_id=name)
        found = old.books.ListCouponBooks(listed).coupon_books
        assert [it.book_id for it in found] == [made.book_id]


@pytest.mark.skipif(bool(BUSINESS), reason="in the version before no code had a business")
def test_a_caller_of_before_goes_on_with_its_own_requests(
    guarded: ServerThread,
) -> None:
    composed, decomposed = two_spellings()
    (code, uploaded) = new_codes(2)
    ids = {name: unique("request") for name in ("pause", "disable", "generate", "import")}

    def all_of_it(client: Api, book_id: str) -> list[bool]:
        pause = books.PauseCouponBookRequest(book_id=book_id, request_id=ids["pause"])
        generate = codes.GenerateCodesRequest(book_id=book_id, count=3, request_id=ids["generate"])
        return [
            client.disable(code, request_id=ids["disable"]).replayed,
            client.books.PauseCouponBook(pause).replayed,
            [*client.codes.GenerateCodes(generate)][-1].replayed,
            client.import_codes(book_id, [uploaded], request_id=ids["import"])[0].replayed,
        ]

    with caller(guarded.address, "admin") as admin:
        book_id = admin.book(codes=[code]).book_id
    with earlier_version(), caller(guarded.address, "admin", sub=decomposed) as client:
        assert all_of_it(client, book_id) == [False] * 4
    for name in (decomposed, composed):
        # Another token, since the server remembers what the one before meant.
        with caller(guarded.address, "admin", "auditor", sub=name) as client:
            assert all_of_it(client, book_id) == [True] * 4
