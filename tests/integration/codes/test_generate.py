"""PreviewCodes and GenerateCodes: random codes by the hundred thousand, in the book's format."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from support.calls import reason_or_ok
from support.service import Api, all_at_once, books, codes, new_codes, refused, unique

from coupon_service.v1.error_reason_pb2 import ERROR_REASON_CODE_SPACE_EXHAUSTED

DEFAULT_ALPHABET = "23456789BCDFGHJKMNPQRSTVWXZ"


def prefix() -> str:
    """A prefix that makes the codes of a format this test's own."""
    return uuid4().hex.upper()[:12]


def generate(
    api: Api, book_id: str, count: int, request_id: str = ""
) -> list[codes.GenerateCodesResponse]:
    request = codes.GenerateCodesRequest(
        book_id=book_id, count=count, request_id=request_id or unique("request")
    )
    return list(api.codes.GenerateCodes(request))


def codes_of(api: Api, book_id: str) -> list[str]:
    """All codes of a book, as they are shown."""
    messages = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book_id))
    return [code.display_code for message in messages for code in message.codes]


# --- preview ------------------------------------------------------------------------------------


def preview(api: Api, count: int, **fields: Any) -> codes.PreviewCodesResponse:
    return api.codes.PreviewCodes(codes.PreviewCodesRequest(count=count, **fields))


def test_the_default_format_has_a_billion_codes_that_are_hard_to_guess(api: Api) -> None:
    answer = preview(api, 10**9)
    assert answer.feasible
    assert not answer.HasField("problem")
    assert answer.capacity == 27**12
    assert math.isclose(answer.entropy_bits, 12 * math.log2(27))
    assert len(set(answer.sample_codes)) == 5
    for sample in answer.sample_codes:
        assert re.fullmatch(f"[{DEFAULT_ALPHABET}]{{12}}", sample)


def test_samples_look_as_the_format_says(api: Api) -> None:
    form = books.CodeFormat(
        length=9,
        alphabet="XYZ",
        prefix="SUMMER",
        suffix="25",
        separator="-",
        group_size=4,
        check_character=True,
    )
    answer = preview(api, 9_841, code_format=form, sample_count=100)
    assert (answer.feasible, answer.capacity) == (True, 3**9)
    assert len(set(answer.sample_codes)) == 100
    for sample in answer.sample_codes:
        assert re.fullmatch("SUMMER-[XYZ]{4}-[XYZ]{4}-[XYZ]{2}-25", sample)


def test_a_preview_says_why_a_format_is_too_small(api: Api) -> None:
    form = books.CodeFormat(length=4, alphabet="AB")
    answer = preview(api, 9, code_format=form)
    assert not answer.feasible
    assert answer.problem.reason == ERROR_REASON_CODE_SPACE_EXHAUSTED
    assert dict(answer.problem.metadata) == {
        "capacity": "16",
        "existing": "0",
        "requested": "9",
        "max_codes": "8",
    }
    assert answer.capacity == 16
    assert len(answer.sample_codes) == 5
    assert preview(api, 8, code_format=form).feasible


def test_more_codes_than_can_be_shown_are_shown_as_the_greatest_number(api: Api) -> None:
    answer = preview(api, 1, code_format=books.CodeFormat(length=32))
    assert answer.capacity == 2**63 - 1
    assert math.isclose(answer.entropy_bits, 32 * math.log2(27))


def test_a_preview_counts_the_codes_of_the_book_and_changes_nothing(api: Api) -> None:
    form = books.CodeFormat(length=4, alphabet="AB", prefix=prefix())
    book = api.draft(code_format=form)
    generate(api, book.book_id, 5)
    assert preview(api, 3, book_id=book.book_id).feasible
    answer = preview(api, 4, book_id=book.book_id)
    assert dict(answer.problem.metadata)["existing"] == "5"
    assert all(sample.startswith(form.prefix) for sample in answer.sample_codes)
    other = preview(api, 4, book_id=book.book_id, code_format=books.CodeFormat(length=5))
    assert (other.feasible, other.capacity) == (True, 27**5)
    assert api.stats(book.book_id).code_count == 5
    assert api.event_names(book_id=book.book_id) == ["BOOK_CREATED", "CODES_GENERATED"]


# --- generate -----------------------------------------------------------------------------------


def test_a_hundred_thousand_codes_are_made_in_committed_chunks_without_a_duplicate(
    api: Api,
) -> None:
    form = books.CodeFormat(separator="-", group_size=4, check_character=True)
    book = api.draft(code_format=form)
    request = codes.GenerateCodesRequest(
        book_id=book.book_id, count=100_000, request_id=unique("request")
    )
    counts: list[int] = []
    for progress in api.codes.GenerateCodes(request):
        assert (progress.count, progress.replayed) == (100_000, False)
        assert api.stats(book.book_id).available_count >= progress.generated_count
        counts.append(progress.generated_count)
    assert counts == sorted(set(counts))
    assert len(counts) > 1
    assert counts[-1] == 100_000
    made = codes_of(api, book.book_id)
    assert len(set(made)) == api.stats(book.book_id).code_count == 100_000
    one = re.compile("-".join([f"[{DEFAULT_ALPHABET}]{{4}}"] * 3 + [f"[{DEFAULT_ALPHABET}]"]))
    assert all(map(one.fullmatch, made))
    assert api.event_names(book_id=book.book_id)[1:] == ["CODES_GENERATED"] * len(counts)


def test_generated_codes_have_the_right_check_character(api: Api) -> None:
    form = books.CodeFormat(length=6, alphabet="ABCDEFGHIJ", prefix=prefix(), check_character=True)
    book = api.draft(code_format=form)
    generate(api, book.book_id, 30)
    for code in codes_of(api, book.book_id):
        other = code[:-1] + ("B" if code[-1] == "A" else "A")
        with refused("CODE_CHECKSUM_INVALID"):
            api.codes.GetCode(codes.GetCodeRequest(code=other, book_id=book.book_id))
    made = codes_of(api, book.book_id)
    (answer,) = api.import_codes(api.draft(code_format=form).book_id, made)
    assert (answer.existing_count, answer.invalid_count) == (30, 0)


def test_a_broken_generation_goes_on_with_the_same_request_id(api: Api) -> None:
    book, request_id = api.draft(), unique("request")
    request = codes.GenerateCodesRequest(book_id=book.book_id, count=60_000, request_id=request_id)
    stream = api.codes.GenerateCodes(request)
    first = next(stream).generated_count
    stream.cancel()
    rest = generate(api, book.book_id, 60_000, request_id)
    assert rest[0].generated_count > first
    assert rest[-1].generated_count == 60_000
    assert not any(progress.replayed for progress in rest)
    assert api.stats(book.book_id).code_count == 60_000
    assert generate(api, book.book_id, 60_000, request_id) == [
        codes.GenerateCodesResponse(generated_count=60_000, count=60_000, replayed=True)
    ]
    assert api.stats(book.book_id).code_count == 60_000
    rows = api.events(book_id=book.book_id)[1:]
    metadata = [MessageToDict(row.metadata) for row in rows]
    assert sum(it["count"] for it in metadata) == 60_000


def test_another_count_under_the_same_request_id_is_refused(api: Api) -> None:
    book, request_id = api.draft(), unique("request")
    generate(api, book.book_id, 10, request_id)
    for count in (9, 11, 60_000):
        with refused("REQUEST_ID_REUSED", StatusCode.INVALID_ARGUMENT):
            generate(api, book.book_id, count, request_id)
    assert api.stats(book.book_id).code_count == 10
    other = api.draft()
    generate(api, other.book_id, 9, request_id)
    assert api.stats(other.book_id).code_count == 9


def test_the_same_generation_twice_at_once_makes_its_codes_once(api: Api) -> None:
    book, request_id = api.draft(), unique("request")
    results: list[Any] = all_at_once([lambda: generate(api, book.book_id, 1_000, request_id)] * 4)
    assert [messages[-1].generated_count for messages in results] == [1_000] * 4
    assert api.stats(book.book_id).available_count == 1_000


def test_a_format_that_is_too_small_is_refused_at_once(api: Api) -> None:
    form = books.CodeFormat(length=4, alphabet="ABCD", prefix=prefix())
    book = api.draft(code_format=form)
    with refused("CODE_SPACE_EXHAUSTED", StatusCode.FAILED_PRECONDITION) as it:
        generate(api, book.book_id, 129)
    assert it.metadata == {
        "capacity": "256",
        "existing": "0",
        "requested": "129",
        "max_codes": "128",
    }
    assert api.event_names(book_id=book.book_id) == ["BOOK_CREATED"]
    request_id = unique("request")
    generate(api, book.book_id, 100, request_id)
    with refused("CODE_SPACE_EXHAUSTED") as it:
        generate(api, book.book_id, 29)
    assert it.metadata["existing"] == "100"
    generate(api, book.book_id, 28)
    assert generate(api, book.book_id, 100, request_id)[-1].replayed
    assert len(set(codes_of(api, book.book_id))) == 128


def test_calls_at_once_never_fill_a_format(api: Api) -> None:
    form = books.CodeFormat(length=4, alphabet="AB", prefix=prefix())
    book = api.draft(code_format=form)
    results = all_at_once([lambda: generate(api, book.book_id, 4)] * 4)
    assert sorted(map(reason_or_ok, results)) == ["CODE_SPACE_EXHAUSTED"] * 2 + ["OK"] * 2
    assert api.stats(book.book_id).code_count == 8
    assert not preview(api, 1, book_id=book.book_id).feasible


def test_books_of_a_business_never_fill_a_format_together(api: Api) -> None:
    business, same = unique("business"), prefix()

    def book(owner: str = business, **fields: Any) -> str:
        form: dict[str, Any] = {"length": 4, "alphabet": "AB", "prefix": same, **fields}
        return api.draft(business_id=owner, code_format=books.CodeFormat(**form)).book_id

    generate(api, book(), 6)
    for other in (
        book(prefix=prefix()),
        book(alphabet="CD"),
        book(length=5),
        book(suffix="XY"),
        book(check_character=True),
    ):
        generate(api, other, 8)
    generate(api, book(owner=unique("other")), 5)
    looks_otherwise = book(alphabet="BA", separator="-", group_size=2)
    for same_codes in (book(), looks_otherwise):
        assert not preview(api, 3, book_id=same_codes).feasible
        with refused("CODE_SPACE_EXHAUSTED") as it:
            generate(api, same_codes, 3)
        assert it.metadata["existing"] == "6"
    form = books.CodeFormat(length=4, alphabet="AB", prefix=same)
    in_other_format = book(prefix=prefix())
    assert preview(api, 3, book_id=in_other_format).feasible
    assert not preview(api, 3, book_id=in_other_format, code_format=form).feasible
    generate(api, looks_otherwise, 2)
    assert not preview(api, 1, book_id=looks_otherwise).feasible


def test_a_preview_counts_the_codes_that_are_being_made(api: Api) -> None:
    form = books.CodeFormat(length=6, alphabet="ABCDEFGHIJ", prefix=prefix())
    book = api.draft(code_format=form)
    stream = api.codes.GenerateCodes(
        codes.GenerateCodesRequest(
            book_id=book.book_id, count=450_000, request_id=unique("request")
        )
    )
    next(stream)
    assert not preview(api, 50_001, book_id=book.book_id).feasible
    assert preview(api, 50_000, book_id=book.book_id).feasible
    stream.cancel()


def test_books_that_share_a_format_share_no_code(api: Api) -> None:
    form = books.CodeFormat(length=8, alphabet="AB", prefix=prefix())
    first, second = api.draft(code_format=form), api.draft(code_format=form)
    generate(api, first.book_id, 64)
    generate(api, second.book_id, 64)
    made = codes_of(api, first.book_id) + codes_of(api, second.book_id)
    assert len(set(made)) == 128


def test_a_generation_that_finds_no_free_codes_ends_and_can_be_tried_again(api: Api) -> None:
    form = books.CodeFormat(length=4, alphabet="AB", prefix=prefix())
    taken = [form.prefix + "".join(body) for body in itertools.product("AB", repeat=4)]
    api.import_codes(api.draft().book_id, taken)
    book, request_id = api.draft(code_format=form), unique("request")
    with refused("CODE_SPACE_EXHAUSTED", StatusCode.FAILED_PRECONDITION) as it:
        generate(api, book.book_id, 2, request_id)
    assert it.metadata == {"capacity": "16", "existing": "0", "requested": "2", "max_codes": "8"}
    assert api.stats(book.book_id).code_count == 0
    assert api.event_names(book_id=book.book_id) == ["BOOK_CREATED"]
    api.update(book.book_id, code_format=books.CodeFormat())
    assert generate(api, book.book_id, 2, request_id)[-1].generated_count == 2


def test_codes_can_be_generated_until_the_book_is_closed(api: Api) -> None:
    book = api.draft()
    for step in (None, api.activate, api.pause):
        if step:
            step(book.book_id)
        generate(api, book.book_id, 10)
    api.close_book(book.book_id)
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        generate(api, book.book_id, 10)
    assert it.metadata == {"state": "CLOSED"}
    assert api.stats(book.book_id).available_count == 30


def test_generation_goes_on_beside_the_use_of_what_is_there(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    stream = api.codes.GenerateCodes(codes.GenerateCodesRequest(book_id=book.book_id, count=40_000))
    next(stream)
    api.redeem(code, "user")
    given = api.assign_random(book.book_id, "user").assignment.code
    assert given != code
    list(stream)
    stats = api.stats(book.book_id)
    assert (stats.available_count, stats.assigned_count, stats.redeemed_count) == (39_999, 1, 1)


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"count": 0}, ["count"]),
        ({"count": -1}, ["count"]),
        ({"count": 10**8 + 1}, ["count"]),
        ({"count": 0, "book_id": "x", "request_id": "ü"}, ["request_id", "book_id", "count"]),
    ],
)
def test_a_bad_request_for_codes_names_its_fields(
    api: Api, fields: dict[str, Any], bad: list[str]
) -> None:
    fields = {"book_id": str(uuid4()), **fields}
    request = codes.GenerateCodesRequest(**fields)
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        list(api.codes.GenerateCodes(request))
    assert it.fields == bad
