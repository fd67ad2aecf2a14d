"""What a code says for itself holds in place of its book, or beside it, in every call."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest
from support.service import (
    Api,
    ServerThread,
    books,
    codes,
    euros,
    from_now,
    new_codes,
    redemptions,
    refused,
    struct,
    unique,
)
from support.waiting import until
from support.work_done import work_done

from coupon_service.v1.assignment_service_pb2 import ListUserCouponsRequest
from coupon_service.v1.error_reason_pb2 import ErrorReason

NOT_ASSIGNED = codes.IMPORT_OUTCOME_NOT_ASSIGNED
INVALID = codes.IMPORT_OUTCOME_INVALID


def percent(basis_points: int) -> books.Discount:
    return books.Discount(percent_off=books.PercentOff(basis_points=basis_points))


def amount(amount_minor: int) -> books.Discount:
    return books.Discount(amount_off=books.AmountOff(amount_minor=amount_minor))


def tiers(*tiers: tuple[int, int]) -> books.Discount:
    """Amounts off, by the order amounts from which on they are given."""
    return books.Discount(
        tiers=books.TieredDiscount(
            tiers=[
                books.Tier(from_amount_minor=least, amount_off=books.AmountOff(amount_minor=off))
                for least, off in tiers
            ]
        )
    )


def row(code: str, user_id: str = "", currency_code: str = "", **terms: Any) -> codes.NewCode:
    """A code with these terms."""
    made = codes.NewCode(code=code, user_id=user_id, currency_code=currency_code)
    if terms:
        made.terms.CopyFrom(codes.CodeTerms(**terms))
    return made


def with_terms(api: Api, book: dict[str, Any] | None = None, **terms: Any) -> str:
    """The only code of a new active book."""
    (code,) = new_codes(1)
    made = api.book(**(book or {}))
    (answer,) = api.import_codes(made.book_id, [row(code, **terms)])
    assert answer.created_count == 1, answer
    return code


def problems(answer: redemptions.ValidateCodeResponse) -> list[str]:
    return [ErrorReason.Name(it.reason).removeprefix("ERROR_REASON_") for it in answer.problems]


def rejected(answer: codes.ImportCodesResponse) -> dict[int, tuple[Any, str]]:
    return {
        it.index: (
            it.outcome,
            ErrorReason.Name(it.error.reason).removeprefix("ERROR_REASON_"),
        )
        for it in answer.rejected_rows
    }


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_book", [0, 1, 5])
def test_a_code_is_redeemed_as_often_as_it_says_itself(api: Api, of_book: int) -> None:
    limits = books.BookLimits(max_redemptions_per_code=of_book)
    code = with_terms(api, {"limits": limits}, max_redemptions=3)
    for number in range(1, 4):
        counts = api.redeem(code, f"user-{number}").counts
        assert (counts.code_redemption_count, counts.code_max_redemptions) == (number, 3)
        assert counts.used_up == (number == 3)
    with refused("CODE_LIMIT_EXCEEDED") as error:
        api.redeem(code, "user-4")
    assert error.metadata["limit"] == "3"
    found = api.get_code(code)
    assert found.state == codes.COUPON_CODE_STATE_REDEEMED
    assert (found.max_redemptions, found.terms.max_redemptions) == (3, 3)


@pytest.mark.one_shard
def test_the_database_itself_keeps_a_code_to_its_own_limit(api: Api, server: ServerThread) -> None:
    code = with_terms(api, max_redemptions=2)
    api.redeem(code, "ann")
    with (
        psycopg.connect(server.database_url) as connection,
        pytest.raises(psycopg.errors.CheckViolation, match="code_cap"),
    ):
        connection.execute("UPDATE coupon_codes SET redemptions = 3 WHERE code = %s", [code])


def test_other_codes_of_the_book_keep_the_limit_of_the_book(api: Api) -> None:
    own, plain = new_codes(2)
    book = api.book()
    api.import_codes(book.book_id, [row(own, max_redemptions=2), row(plain)])
    assert not api.get_code(plain).HasField("terms")
    api.redeem(plain, "ann")
    with refused("CODE_ALREADY_REDEEMED"):
        api.redeem(plain, "bob")
    assert api.redeem(own, "ann").counts.code_max_redemptions == 2


def test_as_many_users_lock_a_code_as_it_allows_itself(api: Api) -> None:
    code = with_terms(api, {"lock_policy": books.LOCK_POLICY_OPTIONAL}, max_redemptions=2)
    api.lock(code, "ann")
    api.lock(code, "bob")
    with refused("CODE_LOCKED"):
        api.lock(code, "eve")
    with refused("CODE_LOCKED"):
        api.redeem(code, "eve")
    assert api.get_code(code).effective_state == codes.COUPON_CODE_STATE_LOCKED
    api.redeem(code, "ann")
    api.redeem(code, "bob")
    with refused("CODE_LIMIT_EXCEEDED"):
        api.lock(code, "eve")


def test_a_redemption_beside_a_lock_leaves_the_lock_its_use(api: Api) -> None:
    code = with_terms(api, {"lock_policy": books.LOCK_POLICY_OPTIONAL}, max_redemptions=2)
    api.redeem(code, "ann")
    held = api.lock(code, "bob")
    with refused("CODE_LOCKED"):
        api.redeem(code, "eve")
    api.redeem(code, "bob", lock_token=held.lock_token)


def test_as_many_users_are_assigned_a_code_as_it_allows_itself(api: Api) -> None:
    code = with_terms(api, max_redemptions=2)
    api.assign(code, "ann")
    api.assign(code, "bob")
    with refused("CODE_ALREADY_ASSIGNED"):
        api.assign(code, "eve")


def test_a_used_up_code_that_was_disabled_is_used_up_again(api: Api) -> None:
    code = with_terms(
        api, {"limits": books.BookLimits(max_redemptions_per_code=0)}, max_redemptions=1
    )
    api.redeem(code, "ann")
    api.disable(code)
    assert api.enable(code).coupon_code.state == codes.COUPON_CODE_STATE_REDEEMED


def test_a_roll_back_gives_a_use_back(api: Api) -> None:
    code = with_terms(api, max_redemptions=2)
    first = api.redeem(code, "ann").redemption.redemption_id
    api.redeem(code, "bob")
    api.rollback(first)
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_AVAILABLE
    api.redeem(code, "eve")
    with refused("CODE_LIMIT_EXCEEDED"):
        api.redeem(code, "ann")


# --- windows ------------------------------------------------------------------------------------


def test_a_code_cannot_be_redeemed_before_its_own_start(api: Api) -> None:
    start = from_now(hours=1)
    code = with_terms(api, {"lock_policy": books.LOCK_POLICY_OPTIONAL}, start_time=start)
    with refused("CODE_NOT_STARTED") as error:
        api.redeem(code, "ann")
    assert datetime.fromisoformat(error.metadata["start_time"]) == start
    with refused("CODE_NOT_STARTED"):
        api.lock(code, "ann")
    assert problems(api.validate(code, "ann")) == ["CODE_NOT_STARTED"]
    api.assign(code, "ann")  # as before the window of a book


def test_a_code_cannot_be_used_after_its_own_end(api: Api) -> None:
    end = from_now(hours=-1)
    code = with_terms(api, {"lock_policy": books.LOCK_POLICY_OPTIONAL}, end_time=end)
    for call in (api.redeem, api.lock, api.assign):
        with refused("CODE_EXPIRED") as error:
            call(code, "ann")
        assert datetime.fromisoformat(error.metadata["expire_time"]) == end
    assert problems(api.validate(code, "ann")) == ["CODE_EXPIRED"]
    assert api.get_code(code).effective_state == codes.COUPON_CODE_STATE_EXPIRED


def test_the_window_of_the_book_holds_beside_that_of_the_code(api: Api) -> None:
    code = with_terms(
        api,
        {"start_time": from_now(hours=1)},
        start_time=from_now(hours=-1),
        end_time=from_now(hours=2),
    )
    assert problems(api.validate(code, "ann")) == ["BOOK_NOT_STARTED"]


def test_a_random_code_is_none_that_is_past_its_end(api: Api) -> None:
    ended, other, third = new_codes(3)
    book = api.book()
    past = from_now(hours=-1)
    api.import_codes(
        book.book_id, [row(ended, end_time=past), row(other), row(third, end_time=past)]
    )
    assert api.assign_random(book.book_id, "ann").assignment.code == other
    with refused("NO_CODES_AVAILABLE"):
        api.assign_random(book.book_id, "bob")


def test_a_random_code_keeps_its_own_limit(api: Api) -> None:
    code = with_terms(api, max_redemptions=2)
    book_id = api.get_code(code).book_id
    assert api.assign_random(book_id, "ann").assignment.code == code
    api.redeem(code, "ann")
    assert api.redeem(code, "bob").counts.used_up


# --- discounts and metadata ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discount", "taken"),
    [
        (percent(2_500), 1_000),
        (amount(700), 700),
        (percent(10_000), 4_000),
        (tiers((1_000, 100), (3_000, 500), (5_000, 900)), 500),
    ],
)
def test_a_code_takes_off_what_it_says_itself(
    api: Api, discount: books.Discount, taken: int
) -> None:
    code = with_terms(api, discount=discount)
    assert api.validate(code, "ann", order_amount=euros(4_000)).discount == euros(taken)
    redeemed = api.redeem(code, "ann", order_amount=euros(4_000))
    assert redeemed.redemption.discount == euros(taken)
    assert api.stats(api.get_code(code).book_id).discount_given == euros(taken)


def test_a_code_may_have_a_benefit_in_a_book_with_a_discount(api: Api) -> None:
    gift = books.Discount(benefit=books.Benefit(description="a mug"))
    code = with_terms(api, discount=gift)
    redeemed = api.redeem(code, "ann", order_amount=euros(4_000)).redemption
    assert (redeemed.benefit, redeemed.HasField("discount")) == ("a mug", False)


def test_the_benefit_of_a_code_takes_nothing_from_the_budget_of_its_book(api: Api) -> None:
    plain, own = new_codes(2)
    book = api.book(codes=[plain], limits=books.BookLimits(max_discount_minor=400))
    gift = books.Discount(benefit=books.Benefit(description="a mug"))
    api.import_codes(book.book_id, [row(own, discount=gift)])
    api.redeem(plain, "ann", order_amount=euros(4_000))
    assert api.redeem(own, "ann").redemption.benefit == "a mug"


def test_a_code_keeps_its_discount_when_that_of_the_book_changes(api: Api) -> None:
    own, plain = new_codes(2)
    book = api.book()
    api.import_codes(book.book_id, [row(own, discount=amount(300)), row(plain)])
    api.update(book.book_id, discount=amount(900))
    assert api.redeem(own, "ann", order_amount=euros(4_000)).redemption.discount == euros(300)
    assert api.redeem(plain, "ann", order_amount=euros(4_000)).redemption.discount == euros(900)


def test_all_that_a_code_says_is_answered_with_it(api: Api) -> None:
    window: dict[str, Any] = {"start_time": from_now(hours=-1), "end_time": from_now(hours=1)}
    terms = codes.CodeTerms(
        **window,
        max_redemptions=3,
        discount=amount(300),
        metadata=struct(letter="2026-11", list=[1, 2.5, True]),
    )
    (code,) = new_codes(1)
    book = api.book()
    api.import_codes(book.book_id, [codes.NewCode(code=code, terms=terms, user_id="ann")])
    asked = codes.ListCodesRequest(book_id=book.book_id)
    (exported,) = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book.book_id))
    assert api.get_code(code).terms == terms
    assert api.codes.ListCodes(asked).codes[0].terms == terms
    assert exported.codes[0].terms == terms
    assert api.validate(code, "ann").terms == terms
    coupons = api.assignments.ListUserCoupons(
        ListUserCouponsRequest(user_id="ann", book_id=book.book_id)
    )
    assert coupons.coupons[0].terms == terms


# --- users --------------------------------------------------------------------------------------


def test_a_code_is_assigned_to_its_user_as_it_is_imported(api: Api) -> None:
    book = api.book(assigned_code_validity={"seconds": 3_600})
    mine, other = new_codes(2)
    request_id = unique("upload")
    (answer,) = api.import_codes(
        book.book_id, [row(mine, "ann"), row(other)], request_id=request_id
    )
    assert (answer.created_count, answer.assigned_count) == (2, 1)
    assert api.event_names(code=mine) == ["ASSIGNED"]
    (event,) = api.events(code=mine)
    assert (event.user_id, event.request_id) == ("ann", request_id)
    assert event.HasField("expire_time")
    assert api.get_code(mine).state == codes.COUPON_CODE_STATE_ASSIGNED
    stats = api.stats(book.book_id)
    assert (stats.available_count, stats.assigned_count, stats.assignment_count) == (1, 1, 1)
    with refused("CODE_ALREADY_ASSIGNED"):
        api.assign(mine, "bob")
    api.redeem(mine, "ann")


def test_a_code_that_cannot_be_assigned_is_not_imported_and_the_others_are(api: Api) -> None:
    book = api.book(limits=books.BookLimits(max_assignments_per_user=2))
    first, second, third, fourth = new_codes(4)
    rows = [row(first, "ann"), row(second, "ann"), row(third, "ann"), row(fourth, "bob")]
    request_id = unique("upload")
    (answer,) = api.import_codes(book.book_id, rows, request_id=request_id)
    assert rejected(answer) == {2: (NOT_ASSIGNED, "USER_LIMIT_EXCEEDED")}
    assert answer.rejected_rows[0].error.metadata["limit"] == "2"
    counts = answer.created_count, answer.assigned_count, answer.not_assigned_count
    assert counts == (3, 3, 1)
    with refused("CODE_NOT_FOUND"):
        api.get_code(third)
    assert api.stats(book.book_id).code_count == 3
    (again,) = api.import_codes(book.book_id, rows, request_id=request_id)
    assert again.replayed
    again.replayed = False
    assert again == answer
    # Its code is free: another upload may have it.
    (later,) = api.import_codes(book.book_id, [row(third, "eve")])
    assert later.assigned_count == 1


def test_codes_with_users_need_an_active_book(api: Api) -> None:
    one, two = new_codes(2)
    (answer,) = api.import_codes(api.draft().book_id, [row(one, "ann"), row(two)])
    assert rejected(answer) == {0: (NOT_ASSIGNED, "BOOK_NOT_ACTIVE")}
    assert answer.created_count == 1


def test_a_code_that_exists_is_left_as_it_is(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    (answer,) = api.import_codes(book.book_id, [row(code, "ann", max_redemptions=5)])
    assert (answer.existing_count, answer.assigned_count) == (1, 0)
    found = api.get_code(code)
    assert (found.assignment_count, found.HasField("terms")) == (0, False)


# --- what is wrong with rows --------------------------------------------------------------------


def test_every_bad_field_of_every_row_is_named(api: Api) -> None:
    one, two, three, good = new_codes(4)
    book = api.book()
    (answer,) = api.import_codes(
        book.book_id,
        [
            row(one, max_redemptions=-1, discount=percent(20_000)),
            row("A/B", user_id=" ann", max_redemptions=-1),
            row(two, start_time=from_now(hours=1), end_time=from_now(hours=0)),
            row(three, currency_code="USD", discount=amount(500)),
            row(good, max_redemptions=2),
        ],
    )
    assert answer.created_count == 1
    assert {it.index: it.outcome for it in answer.rejected_rows} == dict.fromkeys(range(4), INVALID)
    first, second, third, fourth = (it.error.message for it in answer.rejected_rows)
    assert "rows[0].terms.max_redemptions: expected 0 to" in first
    assert "rows[0].terms.discount.percent_off.basis_points: expected 1 to" in first
    assert "rows[1].code: expected" in second
    assert "rows[1].user_id: expected" in second
    assert "rows[1].terms.max_redemptions: expected" in second
    assert "rows[2].terms.end_time: expected a time after start_time" in third
    assert "rows[3].currency_code: expected EUR" in fourth


def test_an_amount_needs_a_book_with_a_currency(api: Api) -> None:
    gift = books.Discount(benefit=books.Benefit(description="a mug"))
    one, two = new_codes(2)
    book = api.book(currency_code="", discount=gift)
    (answer,) = api.import_codes(
        book.book_id, [row(one, discount=amount(1)), row(two, discount=gift)]
    )
    assert rejected(answer) == {0: (INVALID, "INVALID_ARGUMENT")}


def test_the_currency_stays_while_codes_have_their_own_discounts(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.draft()
    api.import_codes(book.book_id, [row(code, discount=amount(300))])
    with refused("INVALID_STATE_TRANSITION") as error:
        api.update(book.book_id, currency_code="USD")
    assert error.metadata["field"] == "currency_code"


def test_a_repeat_with_other_terms_is_another_request(api: Api) -> None:
    (code,) = new_codes(1)
    book, request_id = api.book(), unique("upload")
    rows = row(code, "ann", max_redemptions=2)
    api.import_codes(book.book_id, [rows], request_id=request_id)
    (again,) = api.import_codes(book.book_id, [rows], request_id=request_id)
    assert again.replayed
    for other in (
        row(code, "bob", max_redemptions=2),
        row(code, "ann", max_redemptions=3),
        row(code, "ann"),
        code,
    ):
        with refused("REQUEST_ID_REUSED"):
            api.import_codes(book.book_id, [other], request_id=request_id)


@pytest.mark.parametrize("both", [True, False])
def test_a_chunk_has_codes_or_at_most_1000_rows(api: Api, both: bool) -> None:
    rows = [row(it) for it in new_codes(2 if both else 1_001)]
    with refused("INVALID_ARGUMENT") as error:
        api.import_codes(api.draft().book_id, [*rows, *(["ABCD1"] if both else [])])
    assert error.fields == ["chunk.rows"]


# --- dry runs -----------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_become_of_each_row(api: Api) -> None:
    book = api.book(limits=books.BookLimits(max_assignments_per_user=2))
    made = new_codes(5)
    chunks = [
        [row(made[0], "ann"), row(made[1], max_redemptions=-1), row(made[2], "ann")],
        [row(made[3], "ann"), row(made[4], "bob")],
        [row(made[3], "eve")],
    ]
    tried = api.import_codes(book.book_id, *chunks, validate_only=True)
    assert api.stats(book.book_id).code_count == 0
    assert tried == api.import_codes(book.book_id, *chunks)
    assert [it.created_count for it in tried] == [2, 1, 1]


# --- exports ------------------------------------------------------------------------------------


def test_an_export_tells_who_has_each_code_and_who_redeemed_it_last(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=0)
    book = api.book(limits=limits, assigned_code_validity={"seconds": 3_600})
    plain, given, used, undone = new_codes(4)
    api.import_codes(book.book_id, [plain, given, used, undone])
    first = api.assign(given, "ann").assignment
    last = api.assign(given, "bob").assignment
    revoked = api.assign(given, "eve").assignment
    api.revoke(given, revoked.user_id)
    _, expected, rolled_back = (
        api.redeem(
            used, f"user-{number}", order_id=f"order-{number}", order_amount=euros(1_000)
        ).redemption
        for number in (1, 2, 3)
    )
    api.rollback(rolled_back.redemption_id)
    api.rollback(api.redeem(undone, "ann").redemption.redemption_id)
    asked = codes.ExportCodesRequest(book_id=book.book_id, with_details=True)
    (page,) = api.codes.ExportCodes(asked)
    details = {it.code: it.details for it in page.codes if it.HasField("details")}
    assert first.assign_time.ToNanoseconds() <= last.assign_time.ToNanoseconds()
    assert details == {
        given: codes.CodeDetails(
            user_id="bob",
            assign_time=last.assign_time,
            assignment_expire_time=last.expire_time,
        ),
        used: codes.CodeDetails(
            redemption_id=expected.redemption_id,
            redeem_time=expected.redeem_time,
            redeem_user_id="user-2",
            order_id="order-2",
            discount=euros(100),
        ),
    }
    asked.with_details = False
    (page,) = api.codes.ExportCodes(asked)
    assert not any(it.HasField("details") for it in page.codes)


# --- which coupons fit --------------------------------------------------------------------------


def test_coupons_fit_by_what_their_codes_say(api: Api) -> None:
    user, (best, soon, ended) = unique("user"), new_codes(3)
    book = api.book()
    end, past = from_now(hours=1), from_now(seconds=1)
    rows = [
        row(best, user, discount=amount(900)),
        row(soon, user, end_time=end),
        row(ended, user, end_time=past),
    ]
    (answer,) = api.import_codes(book.book_id, rows)
    assert answer.assigned_count == 3
    until(lambda: "CODE_EXPIRED" in problems(api.validate(ended, user)))
    request = redemptions.QualifyCouponsRequest(
        user_id=user,
        business_id=api.get_book(book.book_id).business_id,
        order_amount=euros(4_000),
    )
    found = api.redemptions.QualifyCoupons(request).coupons
    assert [it.code for it in found] == [best, soon]
    assert [it.discount for it in found] == [euros(900), euros(400)]
    assert found[1].end_time.ToDatetime(UTC) == end


# --- what it costs ------------------------------------------------------------------------------


def test_a_redemption_takes_as_much_work_whatever_the_code_says(
    api: Api, server: ServerThread
) -> None:
    own = with_terms(api, max_redemptions=3, discount=amount(300), end_time=from_now(hours=1))
    plain = api.code()
    with work_done(server) as work:
        done = [work.of(partial(api.redeem, code, "ann"))[1] for code in (own, plain)]
    assert done[0] == done[1]
    assert done[0].count("round trip") == 2
