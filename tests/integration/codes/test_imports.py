"""ImportCodes: every row has an outcome, and a broken upload goes on where it stopped."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from support.service import Api, all_at_once, books, codes, new_codes, refused, unique

CREATED = codes.IMPORT_OUTCOME_CREATED
DUPLICATE = codes.IMPORT_OUTCOME_DUPLICATE_IN_UPLOAD
EXISTING = codes.IMPORT_OUTCOME_ALREADY_EXISTS
INVALID = codes.IMPORT_OUTCOME_INVALID

Message = codes.ImportCodesRequest


def header(book_id: str, request_id: str) -> Message:
    return Message(header=codes.ImportHeader(book_id=book_id, request_id=request_id))


def chunk(number: int, rows: list[str]) -> Message:
    return Message(chunk=codes.ImportChunk(chunk_number=number, codes=rows))


def rejected(answer: codes.ImportCodesResponse) -> list[tuple[int, Any]]:
    """Index and outcome of the rows that were not created."""
    return [(row.index, row.outcome) for row in answer.rejected_rows]


def reasons(answer: codes.ImportCodesResponse) -> set[str]:
    from coupon_service.v1.error_reason_pb2 import ErrorReason

    names = (ErrorReason.Name(row.error.reason) for row in answer.rejected_rows)
    return {name.removeprefix("ERROR_REASON_") for name in names}


class Upload:
    """An upload whose messages are sent one by one, as the test goes along."""

    def __init__(self, api: Api, book_id: str, request_id: str) -> None:
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._messages.put(header(book_id, request_id))
        self.answers = api.codes.ImportCodes(iter(self._messages.get, None))

    def send(self, number: int, rows: list[str]) -> codes.ImportCodesResponse:
        """Sends a chunk and waits for its answer."""
        self._messages.put(chunk(number, rows))
        return next(self.answers)

    def finish(self) -> None:
        self._messages.put(None)
        assert list(self.answers) == []

    def break_off(self) -> None:
        self.answers.cancel()
        self._messages.put(None)


# --- outcomes -----------------------------------------------------------------------------------


def test_rows_become_codes_in_normalised_form(api: Api) -> None:
    first, second, third = new_codes(3)
    book = api.draft()
    rows = [first.lower(), f" {second[:5]}-{second[5:]} ", f"\t{third[:3]}.{third[3:]}_"]
    (answer,) = api.import_codes(book.book_id, rows)
    assert answer == codes.ImportCodesResponse(chunk_number=1, created_count=3)
    listed = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id)).codes
    assert sorted(code.code for code in listed) == [first, second, third]
    assert all(code.state == codes.COUPON_CODE_STATE_AVAILABLE for code in listed)


def test_a_file_may_have_a_byte_order_mark_and_any_line_ends(api: Api) -> None:
    names = new_codes(4)
    rows = [f"\ufeff{names[0]}\r\n", f"{names[1]}\n", f"{names[2]}\r", names[3]]
    (answer,) = api.import_codes(api.draft().book_id, rows)
    assert (answer.created_count, rejected(answer)) == (4, [])
    assert [api.get_code(code).code for code in names] == names


def test_codes_of_any_length_are_stored_together(api: Api) -> None:
    (stem,) = new_codes(1)
    lengths = range(64 - len(stem))
    names = [f"{stem}{'X' * length}{digit}" for length in lengths for digit in range(5)]
    book = api.draft()
    (answer,) = api.import_codes(book.book_id, names)
    assert (answer.created_count, rejected(answer)) == (len(names), [])
    listed = codes.ListCodesRequest(book_id=book.book_id, page_size=1_000)
    assert sorted(it.code for it in api.codes.ListCodes(listed).codes) == sorted(names)


def test_every_row_that_is_no_new_code_is_named_with_its_outcome(api: Api) -> None:
    here, elsewhere, new, newer = new_codes(4)
    book = api.draft()
    api.import_codes(book.book_id, [here])
    api.import_codes(api.draft().book_id, [elsewhere])
    first, second = api.import_codes(
        book.book_id,
        [new, here, new.lower(), elsewhere, here],
        [newer, f"{new[:4]}-{new[4:]}", here, elsewhere],
    )
    assert rejected(first) == [(1, EXISTING), (2, DUPLICATE), (3, EXISTING), (4, DUPLICATE)]
    assert (first.created_count, first.duplicate_count, first.existing_count) == (1, 2, 2)
    assert rejected(second)[:1] == [(1, DUPLICATE)]
    assert second.created_count == 1
    assert {index for index, _ in rejected(second)} == {1, 2, 3}
    assert reasons(first) == reasons(second) == {"DUPLICATE_CODE"}
    assert api.get_code(elsewhere).book_id != book.book_id
    assert api.stats(book.book_id).code_count == 3


@pytest.mark.parametrize(
    "row",
    ["", "\r\n", " - . _ ", "🎁", "A" * 65, "A\0B", "A/B", "A,B", "A\ufffdB", "A" + "-" * 128],
    ids=ascii,
)
def test_a_row_that_is_no_code_is_invalid_and_stops_nothing(api: Api, row: str) -> None:
    before, after = new_codes(2)
    book = api.draft()
    (answer,) = api.import_codes(book.book_id, [before, row, after])
    assert (answer.created_count, answer.invalid_count) == (2, 1)
    assert rejected(answer) == [(1, INVALID)]
    assert reasons(answer) == {"INVALID_ARGUMENT"}
    assert "expected" in answer.rejected_rows[0].error.message
    assert api.stats(book.book_id).code_count == 2


def test_a_file_that_a_spreadsheet_spoiled_makes_no_other_codes(api: Api) -> None:
    (good,) = new_codes(1)
    rows = ["600519.0", "9.91214E15", "1,23E+12", "#N/A", "#REF!", "15-Mar", "NaN", f"{good}\t10"]
    book, request_id = api.draft(), unique("upload")
    (answer,) = api.import_codes(book.book_id, [*rows, good], request_id=request_id)
    assert (answer.created_count, answer.invalid_count) == (1, len(rows))
    assert rejected(answer) == [(index, INVALID) for index in range(len(rows))]
    why = [row.error.message for row in answer.rejected_rows]
    assert all("number that a spreadsheet made" in it for it in why[:3])
    assert len({it.partition(": ")[2] for it in why}) == 4
    (again,) = api.import_codes(book.book_id, [*rows, good], request_id=request_id)
    assert [row.error.message for row in again.rejected_rows] == why
    exported = codes.ExportCodesRequest(book_id=book.book_id)
    assert [it.code for page in api.codes.ExportCodes(exported) for it in page.codes] == [good]


def test_a_dot_may_stand_anywhere_when_a_code_is_looked_up(api: Api) -> None:
    code = f"{new_codes(1)[0]}.0"
    api.book(codes=[code])
    assert api.redeem(code, "u").redemption.code == code.replace(".", "")


def test_a_mistyped_row_is_found_where_the_format_has_a_check_character(api: Api) -> None:
    form = books.CodeFormat(length=12, check_character=True)
    source = api.draft(code_format=form)
    generate = codes.GenerateCodesRequest(book_id=source.book_id, count=1, request_id="r")
    list(api.codes.GenerateCodes(generate))
    (made,) = api.codes.ListCodes(codes.ListCodesRequest(book_id=source.book_id)).codes
    mistyped = ("3" if made.code[0] == "2" else "2") + made.code[1:]
    (vanity,) = new_codes(1)
    (answer,) = api.import_codes(api.draft(code_format=form).book_id, [mistyped, vanity])
    assert (answer.created_count, answer.invalid_count) == (1, 1)
    assert rejected(answer) == [(0, INVALID)]
    assert reasons(answer) == {"CODE_CHECKSUM_INVALID"}
    (answer,) = api.import_codes(api.draft().book_id, [mistyped])
    assert answer.created_count == 1


def test_a_chunk_has_up_to_ten_thousand_rows_and_all_of_them_can_be_bad(api: Api) -> None:
    names = new_codes(10_000)
    book = api.draft()
    answers = api.import_codes(book.book_id, names, names, ["?"] * 10_000)
    assert [it.created_count for it in answers] == [10_000, 0, 0]
    assert [it.duplicate_count for it in answers] == [0, 10_000, 0]
    assert [it.invalid_count for it in answers] == [0, 0, 10_000]
    for answer in answers[1:]:
        assert [row.index for row in answer.rejected_rows] == list(range(10_000))
    assert api.stats(book.book_id).available_count == 10_000


# --- streams ------------------------------------------------------------------------------------


def test_each_chunk_is_committed_when_it_is_answered(api: Api) -> None:
    names = new_codes(3)
    book = api.draft()
    upload = Upload(api, book.book_id, unique("upload"))
    for number, code in enumerate(names, 1):
        assert upload.send(number, [code]).chunk_number == number
        assert api.stats(book.book_id).code_count == number
    upload.finish()


def test_an_upload_of_nothing_changes_nothing(api: Api) -> None:
    book = api.draft()
    assert api.import_codes(book.book_id) == []
    assert api.event_names(book_id=book.book_id) == ["BOOK_CREATED"]


def test_a_broken_upload_goes_on_with_the_same_request_id_and_repeats_nothing(api: Api) -> None:
    names = new_codes(6)
    book, request_id = api.draft(), unique("upload")
    chunks = [[*names[:2], "bad/row"], [*names[2:4], names[0]], names[4:]]
    upload = Upload(api, book.book_id, request_id)
    first = upload.send(1, chunks[0])
    upload.break_off()
    assert api.stats(book.book_id).code_count == 2
    answers = api.import_codes(book.book_id, *chunks, request_id=request_id)
    assert [it.replayed for it in answers] == [True, False, False]
    assert [it.created_count for it in answers] == [2, 2, 2]
    assert rejected(answers[1]) == [(2, DUPLICATE)]
    first.replayed = True
    assert answers[0] == first
    assert api.stats(book.book_id).code_count == 6
    again = api.import_codes(book.book_id, *chunks, request_id=request_id)
    assert all(it.replayed for it in again)
    for it in answers:
        it.replayed = True
    assert again == answers
    assert api.stats(book.book_id).code_count == 6
    assert api.event_names(book_id=book.book_id)[1:] == ["CODES_IMPORTED"] * 3


def test_an_upload_can_go_on_with_the_first_chunk_that_was_not_answered(api: Api) -> None:
    names = new_codes(3)
    book, request_id = api.draft(), unique("upload")
    api.import_codes(book.book_id, [names[0]], request_id=request_id)
    rest = api.import_codes(
        book.book_id, [names[1]], [names[2], names[0]], request_id=request_id, first=2
    )
    assert [it.chunk_number for it in rest] == [2, 3]
    assert rejected(rest[1]) == [(1, DUPLICATE)]
    assert api.stats(book.book_id).code_count == 3


def test_a_client_that_fails_while_it_sends_leaves_the_chunks_before(api: Api) -> None:
    names = new_codes(2)
    book, request_id = api.draft(), unique("upload")
    answered = queue.SimpleQueue[bool]()

    def messages() -> Iterator[Message]:
        yield header(book.book_id, request_id)
        yield chunk(1, names)
        answered.get()
        raise OSError("the file cannot be read on")

    stream = api.codes.ImportCodes(messages())
    assert next(stream).created_count == 2
    answered.put(True)
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert api.stats(book.book_id).code_count == 2


def test_other_rows_under_the_same_request_id_are_refused(api: Api) -> None:
    one, other, third = new_codes(3)
    book, request_id = api.draft(), unique("upload")
    api.import_codes(book.book_id, [one], request_id=request_id)
    with refused("REQUEST_ID_REUSED", StatusCode.INVALID_ARGUMENT):
        api.import_codes(book.book_id, [other], request_id=request_id)
    with refused("REQUEST_ID_REUSED"):
        api.import_codes(book.book_id, [third], [other], request_id=request_id)
    assert api.stats(book.book_id).code_count == 1


def test_a_request_id_is_about_one_book(api: Api) -> None:
    one, other = new_codes(2)
    request_id = unique("upload")
    api.import_codes(api.draft().book_id, [one], request_id=request_id)
    (answer,) = api.import_codes(api.draft().book_id, [other, one], request_id=request_id)
    assert not answer.replayed
    assert rejected(answer) == [(1, EXISTING)]


def test_the_same_upload_twice_at_once_makes_its_codes_once(api: Api) -> None:
    names = new_codes(500)
    book, request_id = api.draft(), unique("upload")
    results: list[Any] = all_at_once(
        [lambda: api.import_codes(book.book_id, names, request_id=request_id)] * 4
    )
    assert sorted(answer.replayed for (answer,) in results) == [False, True, True, True]
    assert {answer.created_count for (answer,) in results} == {500}
    assert api.stats(book.book_id).available_count == 500


def test_different_uploads_of_the_same_codes_at_once_make_each_code_once(api: Api) -> None:
    names = new_codes(500)
    book_ids = [api.draft().book_id for _ in range(4)]
    results: list[Any] = all_at_once(
        [lambda book_id=book_id: api.import_codes(book_id, names) for book_id in book_ids]
    )
    assert sum(answer.created_count for (answer,) in results) == 500
    assert sum(answer.existing_count for (answer,) in results) == 1_500
    assert sum(api.stats(book_id).code_count for book_id in book_ids) == 500


def test_codes_can_be_imported_until_the_book_is_closed(api: Api) -> None:
    names = new_codes(4)
    book = api.draft()
    upload = Upload(api, book.book_id, unique("upload"))
    upload.send(1, names[:1])
    for number, (step, code) in enumerate(zip((api.activate, api.pause), names[1:], strict=False)):
        step(book.book_id)
        assert upload.send(number + 2, [code]).created_count == 1
    api.close_book(book.book_id)
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        upload.send(4, names[3:])
    upload.break_off()
    assert it.metadata == {"state": "CLOSED"}
    assert api.stats(book.book_id).code_count == 3


def test_imported_codes_can_be_used_at_once(api: Api) -> None:
    book = api.book()
    (code,) = new_codes(1)
    api.import_codes(book.book_id, [code])
    assert api.assign_random(book.book_id, "user").assignment.code == code
    api.redeem(code, "user")


# --- what is no upload --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "fields"),
    [
        (chunk(3, ["A"]), ["chunk.chunk_number"]),
        (chunk(1, ["A"]), ["chunk.chunk_number"]),
        (chunk(2, []), ["chunk.codes"]),
        (chunk(2, ["A"] * 10_001), ["chunk.codes"]),
        (chunk(-1, []), ["chunk.chunk_number", "chunk.chunk_number", "chunk.codes"]),
        (header("", ""), ["chunk"]),
        (Message(), ["chunk"]),
        (chunk(2, ["A" * 1_000] * 1_050), [""]),
    ],
    ids=["gap", "again", "empty", "long", "negative", "header", "nothing", "over 1 MiB"],
)
def test_a_bad_chunk_ends_the_upload_and_those_before_it_stay(
    api: Api, second: Message, fields: list[str]
) -> None:
    (code,) = new_codes(1)
    book, request_id = api.draft(), unique("upload")
    messages = [header(book.book_id, request_id), chunk(1, [code]), second]
    stream = api.codes.ImportCodes(iter(messages))
    assert next(stream).created_count == 1
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        next(stream)
    assert it.fields == fields
    assert api.stats(book.book_id).code_count == 1


@pytest.mark.parametrize(
    ("first", "fields"),
    [
        (None, ["header", "header.book_id", "header.request_id"]),
        (chunk(1, ["A"]), ["header", "header.book_id", "header.request_id"]),
        (header("not an id", "with space"), ["header.book_id", "header.request_id"]),
        (header("not an id", "r" * 65), ["header.book_id", "header.request_id"]),
        (header("", ""), ["header.book_id", "header.request_id"]),
    ],
    ids=["no message", "a chunk", "bad", "long", "empty"],
)
def test_an_upload_begins_with_a_header(api: Api, first: Message | None, fields: list[str]) -> None:
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        list(api.codes.ImportCodes(iter([first] if first else [])))
    assert it.fields == fields


def test_the_first_chunk_may_have_any_number_from_one_on(api: Api) -> None:
    one, other = new_codes(2)
    book = api.draft()
    api.import_codes(book.book_id, [one], first=2**31 - 1)
    with refused("INVALID_ARGUMENT") as it:
        api.import_codes(book.book_id, [other], first=0)
    assert it.fields == ["chunk.chunk_number"]
