"""Rows of uploaded files: what spreadsheets made of codes does not become another code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.errors import InvalidArgument
from coupon_service.model.codes import DEFAULT_ALPHABET, CodeFormat, generate
from coupon_service.store.bulk.upload_rows import (
    ChunkRows,
    ImportOutcome,
    Rejection,
    import_result,
)

PLAIN = CodeFormat()


def read_rows(rows: list[str], code_format: CodeFormat) -> ChunkRows:
    """Rows of any length, sorted out."""
    chunk = ChunkRows()
    chunk.add(rows, 0, code_format, 1)
    return chunk


SPOILED = {
    Rejection.NUMBER: [
        "600519.0",
        "600519.00",
        "600519,0",
        "600519.000000",
        "-12.0",
        "600,519.00",
        "600.519,00",
        "600 519,00",
        "600\u00a0519,00",
        "1\u202f600\u202f519,00",
        "9.91214E15",
        "9.91214E+15",
        "1,23E+12",
        "1.23457e+12",
        "1e+16",
        "1E+05",
        "12.3E+12",
        "1.5E-05",
        "1E-05",
    ],
    Rejection.DATE: ["15-Mar", "1-May", "24-Dec", "15. Mrz", "01.Okt"],
    Rejection.NO_VALUE: [
        "#N/A",
        "#n/a",
        "#REF!",
        "#DIV/0!",
        "#NAME?",
        "#VALUE!",
        "#NUM!",
        "#NULL!",
        "#SPILL!",
        "#GETTING_DATA",
        "#NV",
        "#BEZUG!",
        "#WERT!",
        "#VALEUR!",
        "#¡VALOR!",
        "#¿NOMBRE?",
        "#N/D",
        "#SAKNAS!",
        "########",
        "Err:502",
        "NaN",
        "nan",
        "NULL",
        "(null)",
        "None",
        "undefined",
        "N/A",
        "<NA>",
        "1.#QNAN",
    ],
    Rejection.SEVERAL: [
        "SUMMER25,10",
        "SUMMER25;10;2027-01-01",
        "SUMMER25\t10",
        "SUMMER25|10",
        "SUMMER25\nSUMMER26",
        "SUMMER25\u2028SUMMER26",
    ],
    Rejection.MALFORMED: ["", "-", "🎁", "SUMMER/25", "01/02/2027", "=A1", "jo@shop.example"],
}


@pytest.mark.parametrize(
    ("why", "row"), [(why, row) for why, rows in SPOILED.items() for row in rows], ids=ascii
)
def test_a_spoiled_row_is_invalid_and_says_why(why: Rejection, row: str) -> None:
    for text in (row, f"\ufeff{row}\r\n", f" {row} "):
        chunk = read_rows([text], PLAIN)
        assert (chunk.codes, chunk.rejected) == ({}, {why: [0]})
    result = import_result(0, {why: [3]})
    assert (result.invalid, result.created) == (1, 0)
    ((index, outcome, error),) = result.verdicts()
    assert (index, outcome) == (3, ImportOutcome.INVALID)
    assert isinstance(error, InvalidArgument)
    assert [it.field for it in error.violations] == ["codes[3]"]
    assert error.violations[0].description.startswith("expected")


def test_every_kind_of_invalid_row_has_a_reason_of_its_own() -> None:
    result = import_result(0, {why: [index] for index, why in enumerate(SPOILED)})
    assert len({error.message.partition(": ")[2] for _, _, error in result.verdicts()}) == len(
        SPOILED
    )


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("600519", "600519"),
        ("600 519", "600519"),
        ("600-519", "600519"),
        ("1.234.567", "1234567"),
        ("1234.5678", "12345678"),
        ("2024.12", "202412"),
        ("00123", "00123"),
        ("'00123", "00123"),
        ("12E45", "12E45"),
        ("991214E15", "991214E15"),
        ("12E-345", "12E345"),
        ("9E12", "9E12"),
        ("SAVE10.0", "SAVE100"),
        ("MAR15", "MAR15"),
        ("15-MAR", "15MAR"),
        ("15-MARCH", "15MARCH"),
        ("Mar-15", "MAR15"),
        ("25%OFF", "25OFF"),
        ("#SALE!", "SALE"),
        ("#1", "1"),
        ("NULLTARIF", "NULLTARIF"),
        ("NANCY", "NANCY"),
        ("ERRATA", "ERRATA"),
        ("ref", "REF"),
        ("true", "TRUE"),
    ],
)
def test_a_code_that_only_looks_a_little_like_it_is_taken(row: str, code: str) -> None:
    assert read_rows([row], PLAIN).codes == {code: 0}


@given(
    st.sampled_from([DEFAULT_ALPHABET, "0123456789", "0E1", "0123456789ABCDEF"]),
    st.sampled_from(["", "-", "_", ".", " "]),
    st.integers(1, 12),
    st.integers(4, 12),
)
def test_what_the_book_itself_shows_can_be_uploaded_again(
    alphabet: str, separator: str, group_size: int, length: int
) -> None:
    shape = CodeFormat(
        length, alphabet, separator=separator, group_size=group_size if separator else 0
    )
    codes = generate(shape, 20)
    chunk = read_rows([shape.display(code) for code in codes], shape)
    assert (list(chunk.codes), chunk.rejected) == (codes, {})
