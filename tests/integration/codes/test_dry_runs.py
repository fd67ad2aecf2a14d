"""ImportCodes with validate_only, and how short imported codes may be."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.service import Api, ServerThread, codes, new_codes, refused, unique

TABLES = [
    "coupon_books",
    "coupon_codes",
    "coupon_assignments",
    "coupon_user_counters",
    "coupon_period_counters",
    "coupon_book_totals",
    "coupon_book_counters",
    "redemption_audit",
]


def contents(server: ServerThread) -> list[object]:
    """All that is stored."""
    with psycopg.connect(server.database_url) as connection:
        statements = (
            f"SELECT count(*), md5(string_agg(it::text, ' ' ORDER BY it::text)) FROM {table} AS it"
            for table in TABLES
        )
        return [connection.execute(it.encode()).fetchone() for it in statements]


class TestDryRuns:
    def test_nothing_is_written_and_every_row_has_its_outcome(
        self, api: Api, server: ServerThread
    ) -> None:
        here, elsewhere, *new = new_codes(6)
        api.import_codes(api.draft().book_id, [elsewhere])
        book = api.draft(code_format={"length": 12, "check_character": True})
        api.import_codes(book.book_id, [here])
        chunks = [
            [new[0], here, new[1], "?", "AB"],
            [new[1].lower(), new[2], elsewhere, here],
            [f"{new[0]}\r\n", new[2], new[3]],
        ]
        before = contents(server)
        tried = api.import_codes(book.book_id, *chunks, request_id="r", validate_only=True)
        assert contents(server) == before
        assert [it.created_count for it in tried] == [2, 1, 1]
        imported = api.import_codes(book.book_id, *chunks, request_id="r")
        assert not any(it.replayed for it in imported)
        assert tried == imported
        assert contents(server) != before

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_dry_run_answers_what_an_import_then_does(
        self, api: Api, data: st.DataObject
    ) -> None:
        pool = [*new_codes(6), "AB", "?"]
        rows = st.lists(st.sampled_from(pool).map(lambda it: f" {it.lower()}"), min_size=1)
        book = api.draft()
        api.import_codes(book.book_id, data.draw(rows))
        chunks = data.draw(st.lists(rows, min_size=1, max_size=4))
        tried = api.import_codes(book.book_id, *chunks, validate_only=True)
        assert tried == api.import_codes(book.book_id, *chunks)

    def test_two_at_once_know_nothing_of_each_other(self, api: Api) -> None:
        book, names = api.draft(), new_codes(3)
        for _ in range(2):
            (answer,) = api.import_codes(book.book_id, names, request_id="r", validate_only=True)
            assert (answer.created_count, answer.replayed) == (3, False)

    def test_a_chunk_that_was_imported_is_answered_as_it_was(self, api: Api) -> None:
        book, names = api.draft(), new_codes(4)
        chunks = [[*names[:2], "?"], [names[0], *names[2:]]]
        (first,) = api.import_codes(book.book_id, chunks[0], request_id="r")
        tried = api.import_codes(book.book_id, *chunks, request_id="r", validate_only=True)
        first.replayed = True
        assert tried[0] == first
        assert (tried[1].created_count, tried[1].duplicate_count) == (2, 1)
        with refused("REQUEST_ID_REUSED"):
            api.import_codes(book.book_id, names, request_id="r", validate_only=True)

    def test_what_an_import_is_refused_for_a_dry_run_is_refused_for_too(self, api: Api) -> None:
        book = api.draft()
        api.close_book(book.book_id)
        with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION):
            api.import_codes(book.book_id, new_codes(1), validate_only=True)
        with refused("INVALID_ARGUMENT") as it:
            api.import_codes(book.book_id, [], validate_only=True)
        assert it.fields == ["chunk.codes"]

    def test_a_whole_chunk_of_codes_is_tried(self, api: Api) -> None:
        book, names = api.draft(), new_codes(10_000)
        tried = api.import_codes(book.book_id, names, names, validate_only=True)
        assert [it.created_count for it in tried] == [10_000, 0]
        assert [it.duplicate_count for it in tried] == [0, 10_000]


class TestShortCodes:
    def outcomes(self, api: Api, book_id: str, rows: list[str], **fields: Any) -> list[int]:
        """How many rows were created or there already, and how many are invalid."""
        (answer,) = api.import_codes(book_id, rows, validate_only=True, **fields)
        for row in answer.rejected_rows:
            if row.outcome == codes.IMPORT_OUTCOME_INVALID:
                assert "expected at least " in row.error.message
        return [len(rows) - answer.invalid_count, answer.invalid_count]

    def test_a_code_has_four_characters_that_count(self, api: Api) -> None:
        assert self.outcomes(api, api.draft().book_id, ["XY-Z", "WX-YZ"]) == [1, 1]

    @pytest.mark.parametrize("of_the_book", [0, 2, 10])
    def test_the_upload_says_otherwise_or_else_the_book(self, api: Api, of_the_book: int) -> None:
        rows = ["X", "XY", "XYZ", "WXYZ", "ABCDEFGHIJ"]
        book = api.draft(min_code_length=of_the_book)
        assert api.get_book(book.book_id).min_code_length == of_the_book
        expected = {0: [2, 3], 2: [4, 1], 10: [1, 4]}[of_the_book]
        assert self.outcomes(api, book.book_id, rows) == expected
        assert self.outcomes(api, book.book_id, rows, min_code_length=3) == [3, 2]

    def test_a_book_can_change_it_at_any_time(self, api: Api) -> None:
        book = api.book(codes=1).book_id
        assert self.outcomes(api, book, ["XYZ"]) == [0, 1]
        assert api.update(book, min_code_length=3).min_code_length == 3
        assert self.outcomes(api, book, ["XYZ"]) == [1, 0]

    def test_a_repeat_is_answered_as_it_was_whatever_the_book_says_now(self, api: Api) -> None:
        book, request_id = api.draft().book_id, unique("upload")
        (first,) = api.import_codes(book, ["XY"], request_id=request_id)
        assert "expected at least 4 letters" in first.rejected_rows[0].error.message
        api.update(book, min_code_length=2)
        (again,) = api.import_codes(book, ["XY"], request_id=request_id)
        first.replayed = True
        assert again == first

    def test_another_length_under_the_same_request_id_is_refused(self, api: Api) -> None:
        book = api.draft().book_id
        api.import_codes(book, ["XY"], request_id="r", min_code_length=3)
        with refused("REQUEST_ID_REUSED"):
            api.import_codes(book, ["XY"], request_id="r")

    @pytest.mark.parametrize("length", [-1, 65])
    def test_a_length_that_no_code_has_is_refused(self, api: Api, length: int) -> None:
        with refused("INVALID_ARGUMENT") as it:
            api.draft(min_code_length=length)
        assert it.fields == ["coupon_book.min_code_length"]
        with refused("INVALID_ARGUMENT") as it:
            api.import_codes(api.draft().book_id, ["XY"], min_code_length=length)
        assert it.fields == ["header.min_code_length"]
