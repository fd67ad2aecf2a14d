"""Every field of a model that is stored has a column, in the order in which rows are read."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from coupon_service.model import Assignment, Book, BookLimits, BookStats, Code, Event
from coupon_service.model.codes import CodeFormat
from coupon_service.store import rows
from coupon_service.store.columns import Columns

NO_COLUMNS = {"adjustments", "is_past"}
"""Fields that are read from another table, or say from which."""


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        (Book, rows.BOOKS),
        (BookLimits, rows.LIMITS),
        (CodeFormat, rows.CODE_FORMAT),
        (BookStats, rows.COUNTERS),
        (Code, rows.SHOWN_CODES),
        (Assignment, rows.ASSIGNMENTS),
        (Event, rows.EVENTS),
    ],
)
def test_columns_are_in_the_order_of_the_fields(model: type[Any], columns: Columns[Any]) -> None:
    stored = (field.name for field in fields(model) if field.name not in NO_COLUMNS)
    assert columns.fields == tuple(stored)
