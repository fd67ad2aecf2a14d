"""Bad input: batches, and messages that cannot be read."""

from __future__ import annotations

import itertools
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from support.bad_requests import bad_fields
from support.service import Api, assignments, books, codes, new_codes, redemptions, refused

# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [redemptions.BATCH_MODE_BEST_EFFORT, redemptions.BATCH_MODE_ALL_OR_NOTHING]
)
def test_a_batch_with_a_bad_item_redeems_nothing_and_names_it(api: Api, mode: Any) -> None:
    names = new_codes(3)
    made = api.book(codes=names)
    items = [redemptions.RedeemItem(code=code, user_id="u") for code in names]
    items[1].code, items[1].user_id = "", " "
    items[2].order_amount.amount_minor = -1
    items[2].request_id = "ü"
    request = redemptions.BatchRedeemCodesRequest(items=items, mode=mode)
    assert bad_fields(api, "redemptions.BatchRedeemCodes", request) == [
        "items[1].code",
        "items[1].user_id",
        "items[2].request_id",
        "items[2].order_amount.amount_minor",
        "items[2].order_amount.currency_code",
    ]
    assert api.stats(made.book_id).redemption_count == 0


def test_a_code_comes_twice_in_a_batch_only_under_different_request_ids(api: Api) -> None:
    (code,) = new_codes(1)
    made = api.book(codes=[code], limits=books.BookLimits(max_redemptions_per_code=0))

    def batch(*request_ids: str) -> redemptions.BatchRedeemCodesRequest:
        spellings = itertools.cycle([code, code.lower(), f"{code[:3]}-{code[3:]}"])
        return redemptions.BatchRedeemCodesRequest(
            request_id="shared",
            items=[
                redemptions.RedeemItem(code=spelling, user_id="u", request_id=request_id)
                for spelling, request_id in zip(spellings, request_ids, strict=False)
            ],
        )

    for request_ids, bad in (
        (("", "", ""), ["items[1].code", "items[2].code"]),
        (("", "shared"), ["items[1].code"]),
        (("a", "b", "a"), ["items[2].code"]),
    ):
        found = bad_fields(api, "redemptions.BatchRedeemCodes", batch(*request_ids))
        assert found == bad
    assert api.stats(made.book_id).redemption_count == 0
    answer = api.redemptions.BatchRedeemCodes(batch("", "a", "b"))
    assert [it.counts.code_redemption_count for it in answer.results] == [1, 2, 3]


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_has_one_to_a_thousand_items(api: Api, count: int) -> None:
    names = new_codes(count)
    items = [redemptions.RedeemItem(code=code, user_id="u") for code in names]
    request = redemptions.BatchRedeemCodesRequest(items=items)
    assert bad_fields(api, "redemptions.BatchRedeemCodes", request) == ["items"]
    made = api.book(codes=1)
    users = [f"user-{number}" for number in range(count)]
    random = assignments.BatchAssignRandomCodesRequest(book_id=made.book_id, user_ids=users)
    assert bad_fields(api, "assignments.BatchAssignRandomCodes", random) == ["user_ids"]
    assert api.stats(made.book_id).assignment_count == 0


def test_users_of_a_batch_are_different_ones(api: Api) -> None:
    made = api.book(codes=5)
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=made.book_id, user_ids=["a", "b", "a", " ", ""]
    )
    assert bad_fields(api, "assignments.BatchAssignRandomCodes", request) == [
        "user_ids[2]",
        "user_ids[3]",
        "user_ids[4]",
    ]
    assert api.stats(made.book_id).assignment_count == 0


# --- messages -----------------------------------------------------------------------------------


def raw(api: Api, method: str, message: bytes) -> Any:
    channel: Any = api.channel
    return channel.unary_unary(f"/coupon_service.v1.{method}")(message)


def test_a_message_that_is_too_large_is_refused(api: Api) -> None:
    code = api.code()
    request = api.redeem_request(code, "u", lock_token="x" * 65_536)
    assert bad_fields(api, "redemptions.RedeemCode", request) == [""]
    huge = api.redeem_request(code, "u", lock_token="x" * 2_000_000)
    with pytest.raises(grpc.RpcError) as error:  # it does not get as far as the service
        api.redemptions.RedeemCode(huge)
    assert error.value.code() == StatusCode.RESOURCE_EXHAUSTED
    assert api.get_code(code).redemption_count == 0
    api.redeem(code, "u")


@pytest.mark.parametrize(
    "message",
    [b"\xff", b"\x0a\x05abc", b"\x0a\x02\xff\xfe", b"\x0a\x03\xed\xa0\x80", b"\x00" * 9, b"\x0b"],
    ids=["junk", "cut off", "not UTF-8", "a surrogate", "zeros", "an open group"],
)
def test_bytes_that_are_no_message_are_refused(api: Api, message: bytes) -> None:
    for method in ("RedemptionService/RedeemCode", "CouponBookService/GetCouponBook"):
        with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
            raw(api, method, message)
        assert it.fields == [""]


def test_bytes_that_are_no_message_end_an_upload_and_what_was_committed_stays(api: Api) -> None:
    (code,) = new_codes(1)
    made = api.draft()
    header = codes.ImportHeader(book_id=made.book_id, request_id="r")
    chunk = codes.ImportChunk(chunk_number=1, codes=[code])
    messages = [
        codes.ImportCodesRequest(header=header).SerializeToString(),
        codes.ImportCodesRequest(chunk=chunk).SerializeToString(),
        b"\xff",
    ]
    channel: Any = api.channel
    upload = channel.stream_stream("/coupon_service.v1.CouponCodeService/ImportCodes")
    answers = upload(iter(messages))
    assert codes.ImportCodesResponse.FromString(next(answers)).created_count == 1
    with refused("INVALID_ARGUMENT") as it:
        next(answers)
    assert it.fields == [""]
    assert api.stats(made.book_id).code_count == 1


def test_fields_that_the_service_does_not_know_are_ignored(api: Api) -> None:
    made = api.draft()
    request = books.GetCouponBookRequest(book_id=made.book_id).SerializeToString()
    answer = raw(api, "CouponBookService/GetCouponBook", request + b"\xfa\x3f\x03new")
    assert books.GetCouponBookResponse.FromString(answer).coupon_book == made


def test_a_method_that_there_is_not_is_not_implemented(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as error:
        raw(api, "CouponBookService/DeleteCouponBook", b"")
    assert error.value.code() == StatusCode.UNIMPLEMENTED
