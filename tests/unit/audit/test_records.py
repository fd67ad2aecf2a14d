"""Records: no two rows of values have the same bytes, and what is no record is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.audit.records import (
    BIGINT,
    INTEGER,
    SMALLINT,
    TEXT,
    TIME,
    UUIDS,
    MalformedError,
    decode,
    encode,
)

LAYOUT = (
    ("small", SMALLINT),
    ("number", INTEGER),
    ("big", BIGINT),
    ("text", TEXT),
    ("id", UUIDS),
    ("time", TIME),
)

values = st.tuples(
    st.none() | st.integers(-(2**15), 2**15 - 1),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(),
    st.none() | st.uuids(),
    st.none() | st.datetimes(timezones=st.just(UTC)),
)


@given(values)
def test_values_come_back(row: tuple[object, ...]) -> None:
    assert tuple(decode(LAYOUT, encode(LAYOUT, row)).values()) == row


@given(values, values)
def test_different_values_have_different_bytes(
    one: tuple[object, ...], other: tuple[object, ...]
) -> None:
    assert (encode(LAYOUT, one) == encode(LAYOUT, other)) == (one == other)


def test_texts_do_not_run_into_each_other() -> None:
    layout = (("one", TEXT), ("other", TEXT))
    assert (
        len({encode(layout, it) for it in (("ab", "c"), ("a", "bc"), ("abc", ""), ("abc", None))})
        == 4
    )


def test_bytes_are_those_that_are_written_down() -> None:
    row = (1, -2, 3, "é", UUID(int=1), datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC))
    assert encode(LAYOUT, row).hex() == (
        "00000006"
        "00000015000000020001"
        "0000001700000004fffffffe"
        "00000014000000080000000000000003"
        "0000001900000002c3a9"
        "00000b860000001000000000000000000000000000000001"
        "000004a00000000800000000000f4240"
    )


@given(values, st.data())
def test_what_is_cut_off_is_malformed(row: tuple[object, ...], data: st.DataObject) -> None:
    record = encode(LAYOUT, row)
    end = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(MalformedError):
        decode(LAYOUT, record[:end])
    with pytest.raises(MalformedError):
        decode(LAYOUT, record + b"\0")


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_malformed(content: bytes) -> None:
    try:
        decoded = decode(LAYOUT, content)
    except MalformedError:
        return
    assert encode(LAYOUT, list(decoded.values())) == content
