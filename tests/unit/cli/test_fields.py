"""Cells of a file become what is said of a code, or are refused with what was expected."""

from __future__ import annotations

import pytest

from coupon_service.cli.fields import new_code

ACCEPTED = {
    ("end_time", "2026-12-31"): "2026-12-31T00:00:00Z",
    ("end_time", "2026-12-31 18:00"): "2026-12-31T18:00:00Z",
    ("end_time", "2026-12-31T18:00:30.5"): "2026-12-31T18:00:30.500Z",
    ("end_time", "2026-12-31T18:00Z"): "2026-12-31T18:00:00Z",
    ("end_time", "2026-12-31T18:00+01:00"): "2026-12-31T17:00:00Z",
    ("end_time", "2026-12-31T18:00 -0530"): "2026-12-31T23:30:00Z",
}

REFUSED = [
    ("end_time", "31.12.2026"),
    ("end_time", "12/31/2026"),
    ("end_time", "2026-02-30"),
    ("end_time", "2026-12-31T25:00"),
    ("max_redemptions", "3.0"),
    ("max_redemptions", "-1"),
    ("max_redemptions", "99999999999"),
    ("percent_off", "0"),
    ("percent_off", "100.5"),
    ("percent_off", "12.555"),
    ("percent_off", "NaN"),
    ("percent_off", "Infinity"),
    ("percent_off", "half"),
    ("amount_off_minor", "5.00"),
    ("amount_off_minor", "99999999999999999"),
    ("max_discount_minor", "500"),
    ("discount", '{"percent": 5}'),
    ("discount", "5"),
    ("metadata", "[1]"),
    ("metadata", "{"),
]


@pytest.mark.parametrize(("field", "cell"), ACCEPTED)
def test_a_time_is_read_with_its_zone_or_as_utc(field: str, cell: str) -> None:
    made, problems = new_code([(field, cell)])
    assert not problems
    assert getattr(made.terms, field).ToJsonString() == ACCEPTED[field, cell]


@pytest.mark.parametrize(
    ("cell", "basis_points"), [("15", 1_500), ("12,5 %", 1_250), ("100%", 10_000)]
)
def test_a_percentage_becomes_basis_points(cell: str, basis_points: int) -> None:
    made, problems = new_code([("percent_off", cell), ("max_discount_minor", "900")])
    assert not problems
    assert made.terms.discount.percent_off.basis_points == basis_points
    assert made.terms.discount.percent_off.max_discount_minor == 900


@pytest.mark.parametrize(("field", "cell"), REFUSED)
def test_a_cell_that_means_nothing_is_refused(field: str, cell: str) -> None:
    _, problems = new_code([(field, cell)])
    assert len(problems) == 1
    assert problems[0].startswith(f"{field}: expected")


def test_every_bad_cell_of_a_row_is_told() -> None:
    cells = [("max_redemptions", "x"), ("end_time", "y"), ("percent_off", "5"), ("benefit", "mug")]
    _, problems = new_code(cells)
    assert [it.partition(":")[0] for it in problems] == ["max_redemptions", "end_time", "benefit"]


def test_cells_without_anything_say_nothing() -> None:
    made, problems = new_code(
        [("code", "ABCD1"), ("user_id", ""), ("end_time", ""), ("metadata", "")]
    )
    assert (made.HasField("terms"), made.user_id, problems) == (False, "", [])


def test_a_discount_can_be_given_in_full() -> None:
    text = '{"tiers": {"tiers": [{"from_amount_minor": 1000, "amount_off": {"amount_minor": 5}}]}}'
    made, problems = new_code([("discount", text)])
    assert not problems
    assert made.terms.discount.tiers.tiers[0].from_amount_minor == 1_000


def test_entries_of_the_metadata_are_added_to_it() -> None:
    made, _ = new_code([("metadata", '{"a": 1}'), ("metadata.letter", "2026-11")])
    assert dict(made.terms.metadata) == {"a": 1, "letter": "2026-11"}
