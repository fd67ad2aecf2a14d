"""CouponCodeService: codes are looked up as people type them, listed, exported, disabled."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from grpc import StatusCode
from support.service import (
    Api,
    books,
    codes,
    from_now,
    new_codes,
    pages,
    redemptions,
    refused,
    unique,
)

AVAILABLE, ASSIGNED = codes.COUPON_CODE_STATE_AVAILABLE, codes.COUPON_CODE_STATE_ASSIGNED
REDEEMED, DISABLED = codes.COUPON_CODE_STATE_REDEEMED, codes.COUPON_CODE_STATE_DISABLED
STORED = (AVAILABLE, ASSIGNED, REDEEMED, DISABLED)


def letters(count: int) -> str:
    """Some letters and digits that no other test has."""
    return uuid4().hex.upper()[:count]


def states(code: codes.CouponCode) -> tuple[str, str]:
    """The stored and the derived state."""
    stored, derived = map(codes.CouponCodeState.Name, (code.state, code.effective_state))
    return stored.removeprefix("COUPON_CODE_STATE_"), derived.removeprefix("COUPON_CODE_STATE_")


def one_in_each_state(
    api: Api,
) -> tuple[books.CouponBook, dict[codes.CouponCodeState.ValueType, str]]:
    """A book with a code in each stored state."""
    names = new_codes(4)
    book = api.book(codes=names)
    api.assign(names[1], "user")
    api.redeem(names[2], "user")
    api.disable(names[3])
    return book, dict(zip(STORED, names, strict=True))


# --- get ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        "{0}{1}",
        "{0}-{1}",
        "{0} {1}",
        "{0}_{1}",
        "{0}.{1}",
        "  {0}--{1}. ",
        "-{0}- -{1}-",
        "{0}{1}" + "-" * 100,
    ],
)
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title], ids=["upper", "lower", "mixed"])
def test_a_code_is_found_however_it_is_typed(api: Api, typed: str, case: Any) -> None:
    first, second = letters(6), letters(7)
    book = api.book(codes=[first + second])
    text = typed.format(case(first), case(second))
    assert api.get_code(text).code == first + second
    request = codes.GetCodeRequest(code=text, book_id=book.book_id)
    assert api.codes.GetCode(request).coupon_code.code == first + second


def test_a_code_is_shown_with_its_counts_and_limit(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=books.BookLimits(max_redemptions_per_code=3))
    api.assign(code, "a")
    api.assign(code, "b")
    api.redeem(code, "a")
    assert api.get_code(code) == codes.CouponCode(
        code=code,
        display_code=code,
        book_id=book.book_id,
        state=ASSIGNED,
        effective_state=ASSIGNED,
        redemption_count=1,
        max_redemptions=3,
        assignment_count=2,
    )


def test_a_code_is_shown_as_the_format_writes_it_when_it_has_its_shape(api: Api) -> None:
    prefix = letters(12)
    form = books.CodeFormat(
        length=6, alphabet="ABC", prefix=prefix, suffix="END", separator="-", group_size=4
    )
    ours, others = f"{prefix}AABBCCEND", f"{prefix}AABBCXEND"
    api.book(codes=[ours, others], code_format=form)
    assert api.get_code(ours).display_code == f"{prefix}-AABB-CC-END"
    assert api.get_code(f"{prefix}-AABB-CC-END").code == ours
    assert api.get_code(others).display_code == others


def test_a_code_is_not_found_when_there_is_none_or_it_is_in_another_book(api: Api) -> None:
    (code,) = new_codes(1)
    api.book(codes=[code])
    other = api.book()
    for request in (
        codes.GetCodeRequest(code=letters(20)),
        codes.GetCodeRequest(code=code, book_id=other.book_id),
        codes.GetCodeRequest(code=code, book_id=str(uuid4())),
    ):
        with refused("CODE_NOT_FOUND", StatusCode.NOT_FOUND) as it:
            api.codes.GetCode(request)
        assert it.metadata == {}


def test_a_mistyped_code_is_distinguished_from_an_unknown_one_where_the_book_is_named(
    api: Api,
) -> None:
    form = books.CodeFormat(length=12, check_character=True)
    book = api.draft(code_format=form)
    request = codes.GenerateCodesRequest(book_id=book.book_id, count=1, request_id=unique("r"))
    list(api.codes.GenerateCodes(request))
    (made,) = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id)).codes
    assert len(made.code) == 13
    mistyped = ("3" if made.code[0] == "2" else "2") + made.code[1:]
    with refused("CODE_CHECKSUM_INVALID", StatusCode.INVALID_ARGUMENT):
        api.codes.GetCode(codes.GetCodeRequest(code=mistyped, book_id=book.book_id))
    with refused("CODE_NOT_FOUND", StatusCode.NOT_FOUND):
        api.get_code(mistyped)
    with refused("CODE_NOT_FOUND"):  # not of this form: it may be a code from elsewhere
        api.codes.GetCode(codes.GetCodeRequest(code="X" + mistyped, book_id=book.book_id))


# --- derived states -----------------------------------------------------------------------------


def test_a_code_is_locked_while_all_uses_that_are_left_are(api: Api) -> None:
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=3)
    book = api.book(codes=[code], limits=limits, lock_policy=books.LOCK_POLICY_OPTIONAL)
    api.redeem(code, "first")
    one = api.lock(code, "one")
    assert states(api.get_code(code)) == ("AVAILABLE", "AVAILABLE")
    api.lock(code, "other")
    assert states(api.get_code(code)) == ("AVAILABLE", "LOCKED")
    (listed,) = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id)).codes
    assert states(listed) == ("AVAILABLE", "AVAILABLE")
    api.unlock(one.lock_token)
    assert states(api.get_code(code)) == ("AVAILABLE", "AVAILABLE")


def test_a_code_that_is_not_used_up_expires_with_its_book(api: Api, tomorrow: Api) -> None:
    names = new_codes(4)
    book = api.book(codes=names, end_time=from_now(hours=1))
    api.assign(names[1], "user")
    api.redeem(names[2], "user")
    api.disable(names[3])
    now = [states(api.get_code(code))[1] for code in names]
    assert now == ["AVAILABLE", "ASSIGNED", "REDEEMED", "DISABLED"]
    later = [states(tomorrow.get_code(code))[1] for code in names]
    assert later == ["EXPIRED", "EXPIRED", "REDEEMED", "DISABLED"]
    request = codes.ListCodesRequest(book_id=book.book_id)
    for client, expected in ((api, now), (tomorrow, later)):
        listed = {it.code: states(it)[1] for it in client.codes.ListCodes(request).codes}
        assert [listed[code] for code in names] == expected


# --- list and export ----------------------------------------------------------------------------


def test_codes_are_listed_all_or_by_stored_state(api: Api) -> None:
    book, names = one_in_each_state(api)
    listed = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id)).codes
    assert {code.code: code.state for code in listed} == {v: k for k, v in names.items()}
    for state, name in names.items():
        request = codes.ListCodesRequest(book_id=book.book_id, state=state)
        assert [code.code for code in api.codes.ListCodes(request).codes] == [name]
        assert list(api.codes.ListCodes(request).codes) == [api.get_code(name)]


def test_a_code_keeps_its_place_in_the_list_when_its_state_changes(api: Api) -> None:
    names = new_codes(12)
    book = api.book(codes=names)
    request = codes.ListCodesRequest(book_id=book.book_id, page_size=5)
    before = [it.code for page in pages(api.codes.ListCodes, request, "codes") for it in page]
    for code in before[::2]:
        api.redeem(code, "user")
    after = [it.code for page in pages(api.codes.ListCodes, request, "codes") for it in page]
    assert after == before
    assert sorted(before) == names


def exported(api: Api, **fields: Any) -> list[codes.ExportCodesResponse]:
    return list(api.codes.ExportCodes(codes.ExportCodesRequest(**fields)))


def test_an_export_streams_every_code_and_goes_on_after_any_message(api: Api) -> None:
    names = new_codes(2_500)
    book = api.book(codes=names)
    messages = exported(api, book_id=book.book_id)
    assert [len(message.codes) for message in messages] == [1_000, 1_000, 500]
    everything = [code.code for message in messages for code in message.codes]
    assert sorted(everything) == names
    assert messages[-1].next_page_token == ""
    for index, message in enumerate(messages[:-1]):
        rest = exported(api, book_id=book.book_id, page_token=message.next_page_token)
        assert rest == messages[index + 1 :]


def test_an_export_can_be_of_one_state_and_does_not_show_the_derived_one(api: Api) -> None:
    book, names = one_in_each_state(api)
    for state, name in names.items():
        (message,) = exported(api, book_id=book.book_id, state=state)
        expected = api.get_code(name)
        expected.ClearField("effective_state")
        assert list(message.codes) == [expected]


def test_an_export_of_no_codes_is_one_empty_message(api: Api) -> None:
    assert exported(api, book_id=api.draft().book_id) == [codes.ExportCodesResponse()]


def test_an_export_that_nobody_reads_on_ends(api: Api) -> None:
    book = api.book(codes=new_codes(2_500))
    stream = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book.book_id))
    first = next(stream)
    stream.cancel()
    rest = exported(api, book_id=book.book_id, page_token=first.next_page_token)
    assert sum(len(message.codes) for message in rest) == 1_500


def test_codes_of_an_unknown_book_are_not_there(api: Api) -> None:
    book_id = str(uuid4())
    header = codes.ImportHeader(book_id=book_id, request_id="r")
    chunk = codes.ImportChunk(chunk_number=1, codes=["C"])
    upload = [codes.ImportCodesRequest(header=header), codes.ImportCodesRequest(chunk=chunk)]
    for call in (
        lambda: api.codes.ListCodes(codes.ListCodesRequest(book_id=book_id)),
        lambda: exported(api, book_id=book_id),
        lambda: list(api.codes.GenerateCodes(codes.GenerateCodesRequest(book_id=book_id, count=1))),
        lambda: list(api.codes.ImportCodes(iter(upload))),
        lambda: api.codes.PreviewCodes(codes.PreviewCodesRequest(book_id=book_id, count=1)),
    ):
        with refused("BOOK_NOT_FOUND", StatusCode.NOT_FOUND):
            call()


# --- disable and enable -------------------------------------------------------------------------


def test_a_disabled_code_comes_back_as_what_its_counts_say(api: Api) -> None:
    names = new_codes(3)
    api.book(codes=names)
    api.assign(names[1], "user")
    api.redeem(names[2], "user")
    for code, state in zip(names, ("AVAILABLE", "ASSIGNED", "REDEEMED"), strict=True):
        before = api.get_code(code)
        disabled = api.disable(code.lower())
        assert not disabled.replayed
        assert states(disabled.coupon_code) == ("DISABLED", "DISABLED")
        assert disabled.coupon_code == api.get_code(code)
        enabled = api.enable(f" {code}-")
        assert not enabled.replayed
        assert states(enabled.coupon_code) == (state, state)
        assert enabled.coupon_code == api.get_code(code) == before


def test_what_happens_to_a_disabled_code_is_seen_when_it_is_enabled(api: Api) -> None:
    used, given = new_codes(2)
    api.book(codes=[used, given])
    redemption_id = api.redeem(used, "user").redemption.redemption_id
    api.assign(given, "user")
    for code in (used, given):
        api.disable(code)
    api.rollback(redemption_id)
    api.revoke(given, "user")
    for code in (used, given):
        assert states(api.get_code(code)) == ("DISABLED", "DISABLED")
        assert states(api.enable(code).coupon_code) == ("AVAILABLE", "AVAILABLE")


def test_only_an_enabled_code_can_be_disabled_and_the_other_way_round(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        api.enable(code)
    assert it.metadata == {"state": "AVAILABLE"}
    api.disable(code)
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        api.disable(code)
    assert it.metadata == {"state": "DISABLED"}
    for call in (api.disable, api.enable):
        with refused("CODE_NOT_FOUND", StatusCode.NOT_FOUND):
            call(letters(20))
    assert api.event_names(book_id=book.book_id)[3:] == ["CODE_DISABLED"]


def test_codes_are_disabled_and_enabled_whatever_the_state_of_their_book(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.draft()
    api.import_codes(book.book_id, [code])
    for step in (None, api.activate, api.pause, api.close_book):
        if step:
            step(book.book_id)
        api.disable(code)
        api.enable(code)


def test_a_disabled_code_is_of_no_use_to_anybody_and_its_assignment_stays(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], lock_policy=books.LOCK_POLICY_OPTIONAL)
    api.assign(code, "user")
    token = api.lock(code, "user").lock_token
    api.disable(code)
    for call in (
        lambda: api.redeem(code, "user"),
        lambda: api.redeem(code, "user", lock_token=token),
        lambda: api.lock(code, "other"),
        lambda: api.assign(code, "other"),
    ):
        with refused("CODE_DISABLED", StatusCode.FAILED_PRECONDITION) as it:
            call()
        assert it.metadata == {}
    with refused("NO_CODES_AVAILABLE"):
        api.assign_random(book.book_id, "other")
    item = redemptions.RedeemItem(code=code, user_id="user")
    batch = redemptions.BatchRedeemCodesRequest(items=[item])
    (result,) = api.redemptions.BatchRedeemCodes(batch).results
    assert "disabled" in result.error.message
    api.enable(code)
    assert states(api.get_code(code))[0] == "ASSIGNED"
    api.redeem(code, "user")
