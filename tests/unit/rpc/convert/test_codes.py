"""Requests and answers of CouponCodeService and AssignmentService."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import starmap
from typing import Any
from uuid import UUID

import pytest
from support.page_tokens import PAGES
from support.violations import bad_fields

from coupon_service.errors import (
    CodeSpaceExhausted,
    NoCodesAvailable,
)
from coupon_service.model import (
    Assign,
    Assignment,
    AssignmentState,
    AssignRandom,
    Benefit,
    Book,
    BookLimits,
    Code,
    CodeState,
    Done,
    Event,
    EventType,
    bucket_of_book,
    bucket_of_event,
)
from coupon_service.model.codes import CodeFormat, bucket_of
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import assignments, codes
from coupon_service.rpc.convert.fields import Page
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.store.bulk.upload_rows import ImportResult, Rejection
from coupon_service.v1 import assignment_service_pb2 as assignments_pb
from coupon_service.v1 import coupon_code_service_pb2 as pb
from coupon_service.v1 import error_reason_pb2 as reasons
from coupon_service.v1.coupon_book_service_pb2 import CodeFormat as FormatMessage

NOW = datetime(2026, 5, 1, tzinfo=UTC)
BOOK_ID = UUID("0f8fad5b-d9cb-869f-a165-70867728950e")
BOOK = Book(
    book_id=BOOK_ID,
    business_id="acme",
    name="Spring",
    discount=Benefit("a gift"),
    limits=BookLimits(max_redemptions_per_code=3),
    code_format=CodeFormat(length=4, alphabet="AB", prefix="S", separator="-"),
    create_time=NOW,
    update_time=NOW,
)


def rpc(caller: str = "shop") -> RequestContext:
    return RequestContext(caller=caller)


# --- codes --------------------------------------------------------------------------------------


def test_a_preview_without_a_format_takes_that_of_the_book() -> None:
    preview = codes.read_preview(pb.PreviewCodesRequest(count=10, book_id=str(BOOK_ID)))
    assert preview == codes.Preview(None, 10, BOOK_ID, 5)


def test_a_preview_names_everything_that_is_bad() -> None:
    request = pb.PreviewCodesRequest(
        code_format=FormatMessage(length=33), count=0, book_id="x", sample_count=101
    )
    assert bad_fields(lambda: codes.read_preview(request)) == [
        "code_format.length",
        "count",
        "book_id",
        "sample_count",
    ]


def test_a_preview_says_why_it_cannot_be() -> None:
    message = codes.preview_message(CodeFormat(), CodeSpaceExhausted(max_codes=8), ["ABC"])
    assert not message.feasible
    assert message.problem.reason == reasons.ERROR_REASON_CODE_SPACE_EXHAUSTED
    assert codes.preview_message(CodeFormat(), None, []).feasible


def test_a_capacity_beyond_64_bits_is_the_greatest_number() -> None:
    message = codes.preview_message(CodeFormat(length=32), None, [])
    assert message.capacity == 2**63 - 1


@pytest.mark.parametrize("count", [0, -1, 100_000_001])
def test_the_number_of_codes_to_generate_is_bounded(count: int) -> None:
    request = pb.GenerateCodesRequest(book_id=str(BOOK_ID), count=count)
    assert bad_fields(lambda: codes.read_generate(request, rpc())) == ["count"]
    request.count = 100_000_000
    assert codes.read_generate(request, rpc())[:2] == (BOOK_ID, 100_000_000)


def test_an_upload_begins_with_its_header() -> None:
    header = pb.ImportHeader(book_id=str(BOOK_ID), request_id="r")
    target = codes.read_header(pb.ImportCodesRequest(header=header), rpc())
    assert (target.book_id, target.call.request_id) == (BOOK_ID, "r")
    assert (target.min_code_length, target.validate_only) == (0, False)
    chunk = pb.ImportCodesRequest(chunk=pb.ImportChunk(chunk_number=1, codes=["A"]))
    for first in (chunk, pb.ImportCodesRequest()):
        assert bad_fields(lambda first=first: codes.read_header(first, rpc()))[0] == "header"


def test_the_request_id_of_an_upload_is_required() -> None:
    header = pb.ImportHeader(book_id="x")
    assert bad_fields(lambda: codes.read_header(pb.ImportCodesRequest(header=header), rpc())) == [
        "header.book_id",
        "header.request_id",
    ]


@pytest.mark.parametrize("length", [-1, 65])
def test_the_shortest_code_of_an_upload_is_one_that_can_be(length: int) -> None:
    header = pb.ImportHeader(book_id=str(BOOK_ID), request_id="r", min_code_length=length)
    request = pb.ImportCodesRequest(header=header)
    assert bad_fields(lambda: codes.read_header(request, rpc())) == ["header.min_code_length"]
    header.min_code_length = 64
    request = pb.ImportCodesRequest(header=header)
    assert codes.read_header(request, rpc()).min_code_length == 64


def chunk(number: int, count: int = 1) -> pb.ImportCodesRequest:
    return pb.ImportCodesRequest(chunk=pb.ImportChunk(chunk_number=number, codes=["A"] * count))


def test_a_chunk_has_its_rows_as_they_stand_in_the_file() -> None:
    request = pb.ImportCodesRequest(
        chunk=pb.ImportChunk(chunk_number=1, codes=["\ufeffa-b\r", "", "x" * 200])
    )
    number, rows = codes.read_chunk(request, before=None)
    assert (number, list(rows)) == (1, ["\ufeffa-b\r", "", "x" * 200])


@pytest.mark.parametrize(("number", "before"), [(1, None), (7, None), (2, 1), (8, 7)])
def test_chunk_numbers_begin_anywhere_and_go_up_by_one(number: int, before: int | None) -> None:
    assert codes.read_chunk(chunk(number), before)[0] == number


@pytest.mark.parametrize(("number", "before"), [(0, None), (-1, None), (1, 1), (3, 1), (1, 2)])
def test_other_chunk_numbers_are_refused(number: int, before: int | None) -> None:
    assert set(bad_fields(lambda: codes.read_chunk(chunk(number), before))) == {
        "chunk.chunk_number"
    }


@pytest.mark.parametrize("count", [0, 10_001])
def test_a_chunk_has_one_to_ten_thousand_rows(count: int) -> None:
    assert bad_fields(lambda: codes.read_chunk(chunk(1, count), None)) == ["chunk.codes"]


def test_a_second_header_is_refused() -> None:
    request = pb.ImportCodesRequest(header=pb.ImportHeader(book_id=str(BOOK_ID)))
    assert bad_fields(lambda: codes.read_chunk(request, None)) == ["chunk"]


def test_the_rows_that_were_not_created_are_reported() -> None:
    result = ImportResult(8, 0, 1, 0, [(4, Rejection.EXISTING)], replayed=True)
    message = codes.import_message(2, result)
    assert (message.chunk_number, message.created_count, message.existing_count) == (2, 8, 1)
    assert message.replayed
    (row,) = starmap(codes.rejected_row, result.verdicts())
    assert (row.index, row.outcome) == (4, pb.IMPORT_OUTCOME_ALREADY_EXISTS)
    assert row.error.reason == reasons.ERROR_REASON_DUPLICATE_CODE


def test_an_export_goes_on_where_its_token_says() -> None:
    request = pb.ExportCodesRequest(book_id=str(BOOK_ID), state=pb.COUPON_CODE_STATE_DISABLED)
    request.page_token = PAGES.token(request, ("A",))
    assert codes.read_export(request, PAGES) == (BOOK_ID, CodeState.DISABLED, ("A",))


def test_a_list_of_codes_is_of_a_book_and_a_stored_state() -> None:
    request = pb.ListCodesRequest(book_id="", state=pb.COUPON_CODE_STATE_LOCKED, page_size=2_000)
    assert bad_fields(lambda: codes.read_list(request, PAGES)) == [
        "book_id",
        "state",
        "page_size",
    ]
    good = pb.ListCodesRequest(book_id=str(BOOK_ID), state=pb.COUPON_CODE_STATE_REDEEMED)
    assert codes.read_list(good, PAGES) == (BOOK_ID, CodeState.REDEEMED, Page(50, None))


def test_a_code_is_looked_up_as_it_is_stored() -> None:
    assert codes.read_get(pb.GetCodeRequest(code="s-ab ab"), rpc()) == ("SABAB", None, "")
    bad = pb.GetCodeRequest(code="x" * 65, book_id="x")
    assert bad_fields(lambda: codes.read_get(bad, rpc())) == ["code", "book_id"]


def test_disabling_and_enabling_are_two_attempts_under_one_request_id() -> None:
    request = pb.DisableCodeRequest(code="s-abab", request_id="r")
    off = codes.read_set_enabled(request, EventType.CODE_DISABLED, rpc())
    on = codes.read_set_enabled(request, EventType.CODE_ENABLED, rpc())
    assert (off.code, off.type) == ("SABAB", EventType.CODE_DISABLED)
    assert off.event_id != on.event_id
    assert bucket_of_event(off.event_id) == bucket_of("SABAB")
    bad = pb.EnableCodeRequest(request_id="a b")
    assert bad_fields(lambda: codes.read_set_enabled(bad, EventType.CODE_ENABLED, rpc())) == [
        "request_id",
        "code",
    ]


CODE = Code("SABAB", BOOK_ID, CodeState.ASSIGNED, redemptions=1, assignments=2)


def test_a_code_is_answered_as_it_is_stored_and_as_it_is_shown() -> None:
    code = CODE
    assert codes.code_message(code, BOOK, CodeState.LOCKED) == pb.CouponCode(
        code="SABAB",
        display_code="S-ABAB",
        book_id=str(BOOK_ID),
        state=pb.COUPON_CODE_STATE_ASSIGNED,
        effective_state=pb.COUPON_CODE_STATE_LOCKED,
        redemption_count=1,
        max_redemptions=3,
        assignment_count=2,
    )
    assert codes.code_message(code, BOOK, None).effective_state == 0
    uploaded = replace(code, spelling="s_abAB")
    assert codes.code_message(uploaded, BOOK, None).display_code == "s_abAB"


# --- assignments --------------------------------------------------------------------------------


def assign(**values: Any) -> Assign:
    request = assignments_pb.AssignCodeRequest(code="s-abab", user_id="u", request_id="r")
    request.MergeFrom(assignments_pb.AssignCodeRequest(**values))
    return assignments.read_assign(request, rpc())


def test_a_repeat_of_an_assignment_has_the_same_id_and_fingerprint() -> None:
    first, again = assign(), assign(code="S ABAB")
    assert (first.event_id, first.fingerprint) == (again.event_id, again.fingerprint)
    assert bucket_of_event(first.event_id) == bucket_of("SABAB")


def test_another_user_or_book_under_the_same_request_id_is_a_reuse() -> None:
    for other in (assign(user_id="v"), assign(book_id=str(BOOK_ID))):
        assert other.event_id == assign().event_id
        assert other.fingerprint != assign().fingerprint


def test_bad_assignments_name_every_field() -> None:
    request = assignments_pb.AssignCodeRequest(request_id="a b", book_id="x", code="")
    request.metadata.update({"a": "\0"})
    assert bad_fields(lambda: assignments.read_assign(request, rpc())) == [
        "request_id",
        "code",
        "book_id",
        "user_id",
        "metadata",
    ]


def assign_random(user_id: str = "u", request_id: str = "r", caller: str = "shop") -> AssignRandom:
    request = assignments_pb.AssignRandomCodeRequest(
        book_id=str(BOOK_ID), user_id=user_id, request_id=request_id
    )
    return assignments.read_assign_random(request, rpc(caller))


def test_a_random_assignment_is_named_by_caller_request_book_and_user() -> None:
    command = assign_random()
    assert command.event_id == assign_random().event_id
    others = (assign_random("v"), assign_random(request_id="s"), assign_random(caller="other"))
    assert command.event_id not in {other.event_id for other in others}
    assert bucket_of_event(command.event_id) == bucket_of_book(BOOK_ID)


def batch(*user_ids: str, book_id: str = str(BOOK_ID)) -> tuple[AssignRandom, ...]:
    request = assignments_pb.BatchAssignRandomCodesRequest(
        book_id=book_id, user_ids=user_ids, request_id="r"
    )
    return assignments.read_batch(request, rpc())


def test_a_user_of_a_batch_is_the_same_attempt_as_the_user_alone() -> None:
    first, second = batch("u", "v")
    assert (first, second) == (assign_random("u"), assign_random("v"))


def test_a_user_comes_once_in_a_batch() -> None:
    assert bad_fields(lambda: batch("u", "v", "u", " ")) == ["user_ids[2]", "user_ids[3]"]


def test_a_batch_is_of_one_to_a_thousand_users() -> None:
    assert len(batch(*map(str, range(1_000)))) == 1_000
    assert bad_fields(lambda: batch(*map(str, range(1_001)))) == ["user_ids"]
    assert bad_fields(lambda: batch(book_id="x")) == ["book_id", "user_ids"]


def test_a_revocation_is_named_by_its_code() -> None:
    request = assignments_pb.RevokeAssignmentRequest(code="s-abab", user_id="u", request_id="r")
    command = assignments.read_revoke(request, rpc())
    assert (command.code, command.user_id) == ("SABAB", "u")
    assert command.event_id != assign().event_id


def test_coupons_are_listed_by_user() -> None:
    request = assignments_pb.ListUserCouponsRequest(
        user_id="u", state=assignments_pb.ASSIGNMENT_STATE_REVOKED
    )
    user_id, book_id, state, page = assignments.read_list(request, rpc(), PAGES)
    assert (user_id, book_id, state, page.size) == ("u", None, AssignmentState.REVOKED, 50)
    bad = assignments_pb.ListUserCouponsRequest(book_id="x", state=9)  # pyright: ignore[reportArgumentType]
    assert bad_fields(lambda: assignments.read_list(bad, rpc(), PAGES)) == [
        "user_id",
        "book_id",
        "state",
    ]


ASSIGNMENT = Assignment(
    "SABAB", "u", BOOK_ID, AssignmentState.ACTIVE, assign_time=NOW, expire_time=NOW, metadata="{}"
)
ASSIGNED = Event(
    event_id=BOOK_ID,
    type=EventType.ASSIGNED,
    event_time=NOW,
    book_id=BOOK_ID,
    code="SABAB",
    user_id="u",
    caller="shop",
    peer="",
    user_agent="",
    request_id="r",
    fingerprint=0,
    expire_time=NOW,
    metadata="{}",
)


def test_an_assignment_is_shown_with_its_code_as_it_is_written() -> None:
    message = assignments.done_assignment(Done(ASSIGNED, BOOK, CODE, ASSIGNMENT, replayed=True))
    assert message.display_code == "S-ABAB"
    assert message.assign_time == to_timestamp(NOW)
    uploaded = replace(CODE, spelling="s'ab-ab!")
    message = assignments.done_assignment(Done(ASSIGNED, BOOK, uploaded, ASSIGNMENT))
    assert (message.code, message.display_code) == ("SABAB", "s'ab-ab!")


def test_every_user_of_a_batch_gets_a_result_of_its_own() -> None:
    commands = batch("u", "v")
    outcomes = [Done(ASSIGNED, BOOK, CODE, ASSIGNMENT, replayed=True), NoCodesAvailable()]
    first, second = assignments.batch_message(commands, outcomes).results
    assert (first.user_id, first.assignment.code, first.replayed) == ("u", "SABAB", True)
    assert (second.user_id, second.error.reason) == (
        "v",
        reasons.ERROR_REASON_NO_CODES_AVAILABLE,
    )


def test_a_user_who_has_redeemed_a_code_sees_it_redeemed_though_others_can_use_it() -> None:
    def seen(state: AssignmentState) -> pb.CouponCodeState.ValueType:
        assignment = replace(ASSIGNMENT, state=state)
        return assignments.coupon_message(
            assignment, CODE, BOOK, CodeState.ASSIGNED
        ).effective_state

    assert seen(AssignmentState.ACTIVE) == pb.COUPON_CODE_STATE_ASSIGNED
    assert seen(AssignmentState.REDEEMED) == pb.COUPON_CODE_STATE_REDEEMED
    assert seen(AssignmentState.REVOKED) == pb.COUPON_CODE_STATE_UNSPECIFIED
