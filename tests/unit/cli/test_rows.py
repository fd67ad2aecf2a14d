from __future__ import annotations

import io

import pytest

from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import (
    CHUNK_CHARACTERS,
    CHUNK_ROWS,
    ROW_CHARACTERS,
    Row,
    chunked,
    read_rows,
)


def rows(content: bytes, column: str | None = None) -> list[tuple[int, str]]:
    return [(row.line, row.text) for row in read_rows(io.BytesIO(content), column)]


class TestText:
    def test_each_line_is_a_code_and_keeps_its_number(self) -> None:
        assert rows(b"A1\n\n  \nB2\nC3") == [(1, "A1"), (4, "B2"), (5, "C3")]

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_a_byte_order_mark_and_any_line_end_are_no_part_of_a_code(self, end: bytes) -> None:
        content = b"\xef\xbb\xbf" + end.join([b"A1", b"B2", b""])
        assert rows(content) == [(1, "A1"), (2, "B2")]

    def test_spaces_around_a_code_are_left_out_and_those_in_it_stay(self) -> None:
        assert rows(b" AB CD \n") == [(1, "AB CD")]

    def test_what_is_not_utf8_spoils_its_row_and_no_other(self) -> None:
        assert rows(b"A1\nB\xff2\nC3\n") == [(1, "A1"), (2, "B\ufffd2"), (3, "C3")]

    def test_of_an_endless_row_just_enough_is_kept_for_it_to_be_refused(self) -> None:
        assert rows(b"A" * 100_000) == [(1, "A" * ROW_CHARACTERS)]

    def test_an_empty_file_has_no_rows(self) -> None:
        assert rows(b"") == []

    def test_the_file_stays_open_for_whoever_opened_it(self) -> None:
        file = io.BytesIO(b"A1\n")
        list(read_rows(file, None))
        assert not file.closed


class TestCsv:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_the_column_is_found_whatever_separates_it(self, delimiter: str) -> None:
        lines = ("name;Code ;note", "x;A1;", '"y";"B2";z')
        content = "\r\n".join(lines).replace(";", delimiter)
        assert rows(content.encode("utf-8-sig"), "code") == [(2, "A1"), (3, "B2")]

    def test_rows_without_the_column_are_left_out(self) -> None:
        assert rows(b"name,code\nx\n\ny,\nz,C3\n", "code") == [(5, "C3")]

    def test_a_quoted_line_end_does_not_shift_the_numbers(self) -> None:
        assert rows(b'note,code\n"two\nlines",A1\nx,B2\n', "code") == [(3, "A1"), (4, "B2")]

    def test_a_missing_column_is_told_with_those_that_are_there(self) -> None:
        with pytest.raises(CommandError, match='no column "kode" in the first line: name,code'):
            rows(b"name,code\nx,A1\n", "kode")

    def test_a_file_that_is_no_csv_is_told_with_its_line(self) -> None:
        with pytest.raises(CommandError, match="Line 2 is not CSV"):
            rows(b"code\n" + b"A" * 200_000 + b"\n", "code")


class TestChunks:
    def test_chunks_are_full_numbered_from_one_and_in_order(self) -> None:
        given = [Row(number, f"A{number}") for number in range(2 * CHUNK_ROWS + 1)]
        chunks = list(chunked(given))
        assert [(chunk.number, len(chunk.rows)) for chunk in chunks] == [
            (1, CHUNK_ROWS),
            (2, CHUNK_ROWS),
            (3, 1),
        ]
        assert [row for chunk in chunks for row in chunk.rows] == given

    def test_a_chunk_fits_a_message_whatever_its_rows_are(self) -> None:
        given = [Row(number, "\U0001f600" * ROW_CHARACTERS) for number in range(CHUNK_ROWS)]
        for chunk in chunked(given):
            characters = sum(len(row.text) for row in chunk.rows)
            assert characters <= CHUNK_CHARACTERS
            assert sum(len(row.text.encode()) for row in chunk.rows) < 1024 * 1024

    def test_no_rows_make_no_chunk(self) -> None:
        assert list(chunked([])) == []
