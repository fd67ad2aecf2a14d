"""The checks that all requests share, and metadata, times and amounts."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from support.page_tokens import PAGES
from support.violations import bad_fields

from coupon_service.errors import InvalidArgument
from coupon_service.model import BookState, Money
from coupon_service.model.normalization import NO_CODE
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.convert.values import (
    from_duration_ms,
    from_struct,
    from_timestamp,
    to_money,
    to_struct,
    to_timestamp,
)
from coupon_service.v1.coupon_code_service_pb2 import ListCodesRequest
from coupon_service.v1.money_pb2 import Money as MoneyMessage

FAMILY = "👩\u200d👩\u200d👧"
LATEST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9).map(
    lambda number: number or 0.0  # the database has no negative zero
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
scalars = st.none() | st.booleans() | numbers | texts
objects = st.dictionaries(
    texts,
    scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=3),
    max_size=5,
)


def refused(read: Any, *arguments: Any) -> list[str]:
    """What the check that `read` makes of the field x refuses."""
    fields = Fields()
    read(fields, "x", *arguments)
    try:
        fields.check()
    except InvalidArgument as error:
        return [violation.field for violation in error.violations]
    return []


def struct(value: dict[str, Any]) -> Struct:
    message = Struct()
    message.update(value)
    return message


def nested(levels: int) -> dict[str, Any]:
    """An object of so many levels."""
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


# --- several at once ----------------------------------------------------------------------------


def test_every_bad_field_is_named_with_its_path() -> None:
    fields = Fields()
    item = fields.within("items[3]")
    fields.uuid("book_id", "no")
    item.identifier("user_id", "")
    item.money("order_amount", MoneyMessage(amount_minor=-1, currency_code="eur"))
    assert bad_fields(fields.check) == [
        "book_id",
        "items[3].user_id",
        "items[3].order_amount.amount_minor",
        "items[3].order_amount.currency_code",
    ]


def test_a_request_without_bad_fields_passes() -> None:
    fields = Fields()
    fields.identifier("user_id", "u")
    fields.check()


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["u", "a b", "user@example.org", "Zoë", FAMILY, "x" * 128])
def test_ids_of_callers_are_any_printable_text(text: str) -> None:
    assert Fields().identifier("x", text) == text
    assert refused(Fields.identifier, text) == []


@pytest.mark.parametrize(
    "text",
    ["", " ", "   ", " u", "u ", "\u00a0u", "x" * 129, "a\0b", "a\nb", "\x7f", "\x85", "a\u2028b"],
)
def test_ids_of_callers_are_refused_when_they_are_empty_long_padded_or_have_controls(
    text: str,
) -> None:
    assert refused(Fields.identifier, text) == ["x"]


INVISIBLE = (
    *("\u200b", "\ufeff\u200d", "\u00ad", "\u2060", "\u200f", "\u2062", "\u180e"),
    *("\u115f", "\u1160", "\u3164", "\uffa0", "\u2800", "\U0001d159"),
    *("\u034f", "\ufe0f", "\u0301", "\u20dd", "\u17b4", "\U000e0100", "\U000e0041"),
    *("\u2065", "\ufff0", "\U000e0fff", "\u200b \u3164"),
)


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_ids_and_names_have_a_visible_character(text: str) -> None:
    assert refused(Fields.identifier, text) == ["x"]
    assert refused(Fields.identifier, text * 3) == ["x"]
    assert refused(Fields.text, text, 200) == ["x"]
    assert refused(Fields.identifier, f"a{text}b") == []


@pytest.mark.parametrize(
    "text", ["é", "e\u0301", "日", "\u0e01", "🎁", "_", ".", "\ue000", "\u0903"]
)
def test_one_visible_character_is_enough(text: str) -> None:
    assert refused(Fields.identifier, text) == []


@pytest.mark.parametrize("text", ["", "one\ntwo\r\n\tthree ", FAMILY, "x" * 2_000])
def test_a_description_has_any_number_of_lines(text: str) -> None:
    assert refused(Fields.lines, text, 2_000) == []


@pytest.mark.parametrize("text", ["a\0", "\x1b[31m", "x" * 2_001])
def test_a_description_has_no_controls_and_an_end(text: str) -> None:
    assert refused(Fields.lines, text, 2_000) == ["x"]


def test_a_uuid_may_be_written_in_either_case() -> None:
    text = "0F8FAD5B-D9CB-869F-A165-70867728950E"
    assert str(Fields().uuid("x", text)) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "0f8fad5bd9cb869fa16570867728950e",
        "{0f8fad5b-d9cb-869f-a165-70867728950e}",
        "urn:uuid:0f8fad5b-d9cb-869f-a165-70867728950e",
        "0f8fad5b-d9cb-869f-a165-70867728950g",
        "0f8fad5b-d9cb-869f-a165-70867728950e\n",
        "0f8fad5b-d9cb-869f-a165-7086772895_0",
        "٠f8fad5b-d9cb-869f-a165-70867728950e",
    ],
)
def test_what_is_not_written_as_a_uuid_is_refused(text: str) -> None:
    assert refused(Fields.uuid, text) == ["x"]


def test_an_optional_uuid_may_be_left_out() -> None:
    assert Fields().optional_uuid("x", "") is None


def test_a_code_is_normalised() -> None:
    assert Fields().code("x", " summer-25_a.b ") == "SUMMER25AB"


@pytest.mark.parametrize("text", ["--", " \n", "A\0B", "A/B", "😀"])
def test_what_cannot_be_a_code_is_one_that_does_not_exist(text: str) -> None:
    assert refused(Fields.code, text) == []
    assert Fields().code("x", text) == NO_CODE


@pytest.mark.parametrize("text", ["", "A" * 65, "A" + " " * 128, "\0" * 129])
def test_no_code_at_all_and_one_that_is_too_long_are_refused(text: str) -> None:
    assert refused(Fields.code, text) == ["x"]


@pytest.mark.parametrize("text", ["a", "~" * 64, "2026-01-01/7"])
def test_a_request_id_is_any_ascii_without_spaces(text: str) -> None:
    assert Fields().request_id(text) == text


@pytest.mark.parametrize("text", ["a b", "é", "x" * 65, "a\n", "\0"])
def test_other_request_ids_are_refused(text: str) -> None:
    fields = Fields()
    fields.request_id(text)
    assert bad_fields(fields.check) == ["request_id"]


def test_a_missing_request_id_is_made_up_and_new_every_time() -> None:
    first, second = Fields().request_id(""), Fields().request_id("")
    assert first != second
    assert re.fullmatch("[0-9a-f]{32}", first)


# --- numbers, amounts, enums --------------------------------------------------------------------


@pytest.mark.parametrize(("value", "bad"), [(0, True), (1, False), (9, False), (10, True)])
def test_a_number_lies_within_its_bounds(value: int, bad: bool) -> None:
    assert refused(Fields.whole, value, 1, 9) == (["x"] if bad else [])


def test_an_amount_keeps_its_value() -> None:
    message = MoneyMessage(amount_minor=10**15, currency_code="EUR")
    assert Fields().money("x", message) == Money(10**15, "EUR")


@pytest.mark.parametrize("amount_minor", [0, 1, 10**15])
def test_an_amount_may_be_nothing(amount_minor: int) -> None:
    message = MoneyMessage(amount_minor=amount_minor, currency_code="EUR")
    fields = Fields()
    assert fields.money("x", message) == Money(amount_minor, "EUR")
    fields.check()


@pytest.mark.parametrize("amount_minor", [-(2**63), -1, 10**15 + 1])
def test_an_amount_is_not_negative_and_bounded(amount_minor: int) -> None:
    message = MoneyMessage(amount_minor=amount_minor, currency_code="EUR")
    assert refused(Fields.money, message) == ["x.amount_minor"]


@pytest.mark.parametrize("code", ["", "eur", "EURO", "€UR", "EU"])
def test_a_currency_is_three_capital_letters(code: str) -> None:
    message = MoneyMessage(amount_minor=1, currency_code=code)
    assert refused(Fields.money, message) == ["x.currency_code"]


def test_an_enum_that_is_not_set_takes_the_default() -> None:
    assert Fields().choice("x", 0, BookState, None) is None
    assert Fields().choice("x", 2, BookState, None) is BookState.ACTIVE


@pytest.mark.parametrize("value", [-1, 8, 2**31 - 1])
def test_an_enum_value_that_the_contract_does_not_know_is_refused(value: int) -> None:
    assert refused(Fields.choice, value, BookState, None) == ["x"]


# --- times --------------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_come_back_to_the_microsecond(time: datetime) -> None:
    assert from_timestamp(to_timestamp(time)) == time


def test_a_timestamp_is_the_one_that_protobuf_makes() -> None:
    time = datetime(2026, 2, 28, 12, 30, 1, 250_000, tzinfo=UTC)
    expected = Timestamp()
    expected.FromDatetime(time)
    assert to_timestamp(time) == expected


@pytest.mark.parametrize(
    ("timestamp", "time"),
    [
        (Timestamp(seconds=253_402_300_799, nanos=999_999_999), LATEST),
        (Timestamp(seconds=-62_135_596_800), datetime(1, 1, 1, tzinfo=UTC)),
        (Timestamp(seconds=-1, nanos=1_500), datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC)),
    ],
    ids=["last", "first", "before 1970"],
)
def test_times_of_ten_thousand_years_are_read(timestamp: Timestamp, time: datetime) -> None:
    assert from_timestamp(timestamp) == time


@pytest.mark.parametrize(
    "timestamp",
    [
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=2**63 - 1),
        Timestamp(nanos=-1),
        Timestamp(nanos=1_000_000_000),
    ],
    ids=["late", "early", "huge", "negative nanos", "too many nanos"],
)
def test_times_beyond_are_refused(timestamp: Timestamp) -> None:
    assert refused(Fields.time, timestamp) == ["x"]


@given(st.integers(0, 86_400_000))
def test_durations_come_back_to_the_millisecond(milliseconds: int) -> None:
    message = Duration()
    message.FromMilliseconds(milliseconds)
    assert from_duration_ms(message) == milliseconds


@pytest.mark.parametrize(
    "duration",
    [
        Duration(),
        Duration(nanos=999_000_000),
        Duration(seconds=86_400, nanos=1_000_000),
        Duration(seconds=365 * 86_400),
        Duration(seconds=-60),
        Duration(seconds=60, nanos=1),
        Duration(seconds=60, nanos=-1_000_000),
        Duration(seconds=60, nanos=1_000_000_000),
        Duration(seconds=2**63 - 1),
    ],
    ids=["0", "short", "long", "a year", "negative", "1 ns", "signs", "nanos", "huge"],
)
def test_a_lifetime_is_a_second_to_a_day_in_whole_milliseconds(duration: Duration) -> None:
    assert refused(Fields.milliseconds, duration, 1_000, 86_400_000) == ["x"]


def test_money_that_is_not_there_stays_away() -> None:
    assert to_money(None, "EUR") is None
    assert to_money(0, "EUR") == MoneyMessage(amount_minor=0, currency_code="EUR")


# --- metadata -----------------------------------------------------------------------------------


@given(objects)
def test_metadata_comes_back_as_it_was(value: dict[str, Any]) -> None:
    text = from_struct(struct(value))
    assert (json.loads(text) if text else {}) == value
    assert to_struct(text) == (struct(value) if value else None)


def test_equal_metadata_are_equal_texts() -> None:
    assert from_struct(struct({"b": 1, "a": 2})) == from_struct(struct({"a": 2, "b": 1}))


def test_empty_metadata_are_none() -> None:
    assert from_struct(Struct()) is None
    assert to_struct(None) is None


def test_metadata_are_compact_and_keep_every_letter() -> None:
    assert (
        from_struct(struct({"ä": [1, 2.5, None, True, 'x"']})) == '{"ä":[1,2.5,null,true,"x\\""]}'
    )


def test_metadata_have_at_most_five_levels() -> None:
    assert from_struct(struct(nested(5))) is not None
    with pytest.raises(ValueError, match="at most 5 levels"):
        from_struct(struct(nested(6)))
    with pytest.raises(ValueError, match="at most 5 levels"):
        from_struct(struct({"a": [[[[[1]]]]]}))


def test_metadata_have_at_most_four_kibibytes_of_json() -> None:
    fits = struct({"a": "x" * (4_096 - len('{"a":""}'))})
    assert len(from_struct(fits) or "") == 4_096
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        from_struct(struct({"a": "x" * (4_097 - len('{"a":""}'))}))
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        from_struct(struct({"a": "ä" * 2_048}))


def test_numbers_are_and_count_as_the_database_writes_them() -> None:
    assert from_struct(struct({"a": -0.0})) == '{"a":0}'
    assert from_struct(struct({"a": 1e300})) == '{"a":1' + "0" * 300 + "}"
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        from_struct(struct({"a": [1e300] * 20}))
    with pytest.raises(ValueError, match="at most 4096 bytes"):
        from_struct(struct({"a": [5e-324] * 20}))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_in_metadata_are_finite(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        from_struct(struct({"a": number}))


@pytest.mark.parametrize("value", [{"a": "x\0"}, {"a\0": 1}, {"a": {"b": ["\0"]}}])
def test_metadata_have_no_nul(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="NUL"):
        from_struct(struct(value))


def test_metadata_have_no_value_that_is_none_of_json() -> None:
    with pytest.raises(ValueError, match="JSON value"):
        from_struct(Struct(fields={"a": Value()}))


def test_bad_metadata_are_a_bad_field() -> None:
    fields = Fields()
    fields.metadata(struct(nested(6)))
    assert bad_fields(fields.check) == ["metadata"]


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (1_000, 1_000)])
def test_a_page_has_fifty_rows_unless_asked_otherwise(asked: int, given: int) -> None:
    fields = Fields()
    assert fields.page(ListCodesRequest(page_size=asked), PAGES).size == given
    fields.check()


def test_a_bad_size_and_a_bad_token_are_both_named() -> None:
    fields = Fields()
    fields.page(ListCodesRequest(page_size=1_001, page_token="x"), PAGES)
    assert bad_fields(fields.check) == ["page_size", "page_token"]


def test_a_negative_page_size_is_refused() -> None:
    fields = Fields()
    fields.page(ListCodesRequest(page_size=-1), PAGES)
    assert bad_fields(fields.check) == ["page_size"]
