from __future__ import annotations

import pytest

from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import (
    CHUNK_CHARACTERS,
    CHUNK_ROWS,
    ROW_CHARACTERS,
    SOURCE_CHARACTERS,
    Layout,
    Row,
    chunked,
    read_rows,
)

LINES = Layout()
CODE = Layout(",", column=1, skipped_lines=1)


def rows(text: str, layout: Layout = LINES) -> list[tuple[int, str]]:
    return [(row.line, row.text) for row in read_rows(text.splitlines(keepends=True), layout)]


class TestText:
    def test_each_line_is_a_code_and_keeps_its_number(self) -> None:
        assert rows("A1\n\n  \nB2\nC3") == [(1, "A1"), (4, "B2"), (5, "C3")]

    def test_spaces_around_a_code_are_left_out_and_those_in_it_stay(self) -> None:
        assert rows(" AB CD\t\n") == [(1, "AB CD")]

    def test_a_row_is_kept_as_it_stands(self) -> None:
        assert list(read_rows([" AB CD\t\n"], LINES)) == [Row(1, "AB CD", " AB CD\t")]

    def test_of_an_endless_row_just_enough_is_kept_for_it_to_be_refused(self) -> None:
        (row,) = read_rows(["A" * 9 + " " * 100_000 + "B"], LINES)
        assert len(row.text.strip()) == ROW_CHARACTERS
        assert len(row.source) == SOURCE_CHARACTERS

    def test_no_lines_have_no_rows(self) -> None:
        assert rows("") == []


class TestCsv:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_a_column_is_read_and_quotation_marks_are_no_part_of_it(self, delimiter: str) -> None:
        text = 'name;Code\nx; A1 \n"y";"B2"\n'.replace(";", delimiter)
        assert rows(text, Layout(delimiter, 1, 1)) == [(2, "A1"), (3, "B2")]

    def test_commas_and_lines_within_quotation_marks_do_not_shift_anything(self) -> None:
        text = 'note,code\n"two,\nlines ""in"" it",A1\nx,B2\n'
        assert rows(text, CODE) == [(2, "A1"), (4, "B2")]

    def test_a_row_of_several_lines_is_kept_as_it_stands(self) -> None:
        (row,) = read_rows(['"two\n', 'lines",A1\n'], Layout(",", 1))
        assert row == Row(1, "A1", '"two\nlines",A1')

    def test_blank_rows_are_left_out_and_a_row_that_lacks_its_code_is_one(self) -> None:
        text = "name,code\nx\n\n,\n , \ny,\nz,C3\n"
        assert rows(text, CODE) == [(2, ""), (6, ""), (7, "C3")]

    @pytest.mark.parametrize("delimiter", [",", ";", ":"])
    def test_a_row_with_more_cells_than_columns_is_no_code(self, delimiter: str) -> None:
        text = "code\nA1,,\nSUMMER,24\n1.234.567,00\nB2\n".replace(",", delimiter)
        layout = Layout(delimiter, skipped_lines=1, width=1)
        expected = [(2, "A1"), (3, "SUMMER,24"), (4, "1.234.567,00"), (5, "B2")]
        assert rows(text, layout) == expected

    @pytest.mark.parametrize(
        "record", ['x,"B2\ny,C3\n', 'x,"B2"2\n', f'x,"{"A" * 200_000}"\n'], ids=range(3)
    )
    def test_what_is_no_csv_is_reported_with_the_line_where_it_begins(self, record: str) -> None:
        with pytest.raises(CommandError, match=r"Line 3 is not CSV: .* quotation mark"):
            rows("name,code\nx,A1\n" + record, CODE)


class TestChunks:
    def test_chunks_are_full_numbered_from_one_and_in_order(self) -> None:
        given = [Row(number, f"A{number}", "") for number in range(2 * CHUNK_ROWS + 1)]
        chunks = list(chunked(given))
        assert [(chunk.number, len(chunk.rows)) for chunk in chunks] == [
            (1, CHUNK_ROWS),
            (2, CHUNK_ROWS),
            (3, 1),
        ]
        assert [row for chunk in chunks for row in chunk.rows] == given

    def test_a_chunk_fits_a_message_whatever_its_rows_are(self) -> None:
        given = [Row(number, "\U0001f600" * ROW_CHARACTERS, "") for number in range(CHUNK_ROWS)]
        for chunk in chunked(given):
            characters = sum(len(row.text) for row in chunk.rows)
            assert characters <= CHUNK_CHARACTERS
            assert sum(len(row.text.encode()) for row in chunk.rows) < 1024 * 1024

    def test_no_rows_make_no_chunk(self) -> None:
        assert list(chunked([])) == []
