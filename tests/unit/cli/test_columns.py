from __future__ import annotations

import pytest

from coupon_service.cli.columns import doubt, find_layout
from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import Layout, read_rows

CODES = [f"A1B{number}" for number in range(10)]


def layout(
    text: str,
    column: str | None = None,
    *,
    header: bool | None = None,
    is_csv: bool = False,
    complete: bool = True,
) -> Layout:
    head = text.splitlines(keepends=True)
    return find_layout(head, column=column, header=header, is_csv=is_csv, complete=complete)


def codes(text: str, column: str | None = None, *, header: bool | None = None) -> list[str]:
    found = layout(text, column, header=header)
    return [row.text for row in read_rows(text.splitlines(keepends=True), found)]


def refusal(text: str, column: str | None = None, *, header: bool | None = None) -> str:
    with pytest.raises(CommandError) as raised:
        layout(text, column, header=header)
    return str(raised.value)


class TestColumns:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("column", ["Code", " code ", "2"])
    def test_a_column_is_found_by_name_or_number_whatever_parts_the_cells(
        self, delimiter: str, column: str
    ) -> None:
        text = 'name;Code;note\nx;A1B2;"a;b"\ny;C3D4;\n'.replace(";", delimiter)
        assert codes(text, column) == ["A1B2", "C3D4"]
        assert layout(text, column).title == "Code"

    def test_a_number_that_is_a_name_means_the_name(self) -> None:
        assert codes("2,1\nx,A1B2\n", "1") == ["A1B2"]

    def test_amounts_with_a_comma_do_not_part_cells_that_semicolons_part(self) -> None:
        assert codes("code;price\nA1B2;1,50\nC3D4;2,50\n", "1") == ["A1B2", "C3D4"]

    def test_the_only_column_of_csv_needs_no_name(self) -> None:
        assert layout("Code\nA1B2\n", is_csv=True) == Layout(
            ",", 0, 1, "Code", header_detected=True, width=1, names=("Code",)
        )
        assert codes('"A1B2"\n"C3D4"\n') == ["A1B2", "C3D4"]

    def test_one_of_several_columns_has_to_be_named(self) -> None:
        assert refusal("name,code\nx,A1B2\n") == (
            'Which column has the codes? The first line has 1 "name", 2 "code".'
            " Use --column with a name or a number."
        )

    def test_a_typo_is_reported_with_the_columns_that_there_are(self) -> None:
        assert refusal("Name;Code\nx;A1B2\n", "kode") == (
            'There is no column "kode". The first line has 1 "Name", 2 "Code". Did you mean "Code"?'
        )
        assert refusal("A1B2\nC3D4\n", "code").startswith(
            'There is no column "code". The first line has 1 "A1B2".'
        )

    @pytest.mark.parametrize("column", ["0", "3", "-1", "", "²"])
    def test_a_number_beyond_the_columns_is_reported(self, column: str) -> None:
        assert refusal("name,code\nx,A1B2\n", column).startswith(f'There is no column "{column}".')

    def test_a_name_that_two_columns_have_is_reported(self) -> None:
        assert "use --column with a number" in refusal("code,code\nA1B2,C3D4\n", "code")

    def test_of_very_many_columns_some_are_named(self) -> None:
        assert refusal(",".join(["x" * 50] * 90) + "\n").endswith(
            "and 70 more. Use --column with a name or a number."
        )

    def test_a_first_line_that_names_the_delimiter_is_no_header(self) -> None:
        assert codes("sep=;\nname;code\nx;A1B2\n", "code") == ["A1B2"]
        assert codes("sep=;\nA1B2\nC3D4\n") == ["A1B2", "C3D4"]

    def test_blank_lines_before_the_header_do_not_count(self) -> None:
        assert codes("\n\nname,code\n\nx,A1B2\n", "code") == ["A1B2"]

    def test_a_record_that_the_end_of_the_head_cuts_does_not_count(self) -> None:
        text = 'name,code\nx,A1B2\n"begun,\n'
        assert layout(text, "code", complete=False) == Layout(
            ",", 1, 1, "code", width=2, names=("name", "code")
        )

    def test_a_header_of_several_lines_is_skipped_as_a_whole(self) -> None:
        assert codes('"the\nname",code\nx,A1B2\n', "code") == ["A1B2"]

    def test_an_empty_file_has_a_layout(self) -> None:
        assert layout("", "code") == Layout()


class TestHeaders:
    @pytest.mark.parametrize(
        "name",
        [
            *("Code", "codes", "COUPON CODE", "coupon_code", "Voucher-Code", "Promo Code:"),
            *("Gutscheincode", "Gutschein Nr.", "Código", "Code promo", "Discount Code", "Kod"),
        ],
    )
    def test_a_name_of_codes_is_a_header(self, name: str) -> None:
        assert codes(f"{name}\nWELCOME\nSUMMER\n") == ["WELCOME", "SUMMER"]

    @pytest.mark.parametrize("code", ["WELCOME", "CODE10", "PROMO24", "A1B2", "GIFTCARD-25"])
    def test_a_code_is_not(self, code: str) -> None:
        assert codes(f"{code}\nSUMMER\nSPRING24\n") == [code, "SUMMER", "SPRING24"]

    def test_a_line_that_is_written_unlike_all_others_is_a_header(self) -> None:
        assert codes("\n".join(["Unser Angebot", *CODES])) == CODES

    def test_whether_an_unlikely_code_is_a_header_is_asked(self) -> None:
        text = "\n".join(["ANGEBOTE", *CODES])
        assert refusal(text).startswith('The first line, "ANGEBOTE", may be a header')
        assert codes(text, header=True) == CODES
        assert codes(text, header=False) == ["ANGEBOTE", *CODES]

    def test_a_header_of_several_columns_is_found_by_any_of_them(self) -> None:
        text = "Kunde;Kennung;Betrag\n" + "x;WELCOME;10,00\n" * 5
        assert codes(text, "2") == ["WELCOME"] * 5
        assert 'The first line, "Kennung", may be a header' in refusal(
            "Kunde;Kennung\nx;A1B2\n", "2"
        )
        assert codes("ann;WELCOME\nbob;SUMMER\n", "2") == ["WELCOME", "SUMMER"]

    def test_a_first_code_without_digits_is_a_code_where_others_are_as_long(self) -> None:
        text = "\n".join(["ABCD", *CODES])
        assert codes(text) == ["ABCD", *CODES]

    def test_it_can_be_said(self) -> None:
        assert codes("Code\nA1B2\n", header=False) == ["Code", "A1B2"]
        assert codes("A1B2\nC3D4\n", header=True) == ["C3D4"]

    def test_without_a_header_no_column_has_a_name(self) -> None:
        assert "use --column with a number" in refusal("name,code\nx,A\n", "code", header=False)

    def test_only_a_header_leaves_nothing(self) -> None:
        assert codes("Code\n") == codes("name,code\n", "code") == []


class TestWhatIsNoCode:
    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            *((date, "dates") for date in ("2027-01-01", "1.2.2027", "12/31/27", "20270101")),
            *((date, "dates") for date in ("2027-01-01T10:00:00Z", "01-Jan-27", "Jan 1, 2027")),
            *((date, "dates") for date in ("31. Dezember 2027", "2027/1/1 10:00")),
            *((amount, "amounts") for amount in ("10.00", "1.234,50", "€ 10", "10 EUR", "15%")),
            *((amount, "amounts") for amount in ("7", "-5", "600519.0", "1 000,00 €", "$5")),
            ("ann@example.com", "e-mail addresses"),
            ("https://example.com/A1B2", "web addresses"),
            ("<td>A1B2</td>", "a document of another kind"),
            ('["A1B2",', "a document of another kind"),
        ],
    )
    def test_dates_amounts_and_addresses_are_recognised(self, value: str, kind: str) -> None:
        found = doubt([value, value, value, value, "A1B2"])
        assert found is not None
        assert found.startswith(kind)
        assert "such as" in found

    @pytest.mark.parametrize(
        "code",
        [
            *(
                "A1B2C3",
                "SUMMER-24-AB",
                "12345678",
                "99999999",
                "1234-5678-9012",
                "EUR10",
                "ABC123",
            ),
            *(
                "25%OFF",
                "12-34-56",
                "2027SPRING",
                "MAY2027",
                "7F3A-22-11",
                "20271399",
                "1234567890123",
            ),
        ],
    )
    def test_codes_are_not(self, code: str) -> None:
        assert doubt([code, "XYZ", "QRS"]) is None
        assert doubt([code]) is None

    def test_one_value_over_and_over_is_recognised(self) -> None:
        assert doubt(["SPRING", "spring", "SPRING"]) == 'one value, "SPRING", over and over'
        assert doubt(["SPRING", "SPRING"]) is None

    def test_a_few_values_over_and_over_are_recognised(self) -> None:
        found = doubt(["active", "used", "active"] * 10)
        assert found == '2 values over and over, such as "active"'
        assert doubt(CODES * 2) is None

    def test_running_numbers_are_recognised_and_numbers_of_a_series_are_not(self) -> None:
        assert doubt([str(number) for number in range(1, 2_000)]) == "running numbers"
        assert doubt([str(number) for number in range(10_001, 10_020)]) is None

    def test_a_first_line_that_may_be_a_header_hides_nothing(self) -> None:
        assert doubt(["Gültig bis", "2027-01-01", "2027-01-02"]) is not None

    def test_a_few_dates_among_codes_do_not_matter(self) -> None:
        assert doubt([*CODES, "2027-01-01", "2027-01-02"]) is None

    def test_nothing_looks_like_nothing(self) -> None:
        assert doubt([]) is None
        assert doubt(["", ""]) is None
