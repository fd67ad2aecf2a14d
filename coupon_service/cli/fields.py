"""What columns of a file can hold beside codes, and how their cells are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, cast

import typer
from google.protobuf import json_format

from coupon_service.cli.requests import in_full
from coupon_service.v1.coupon_book_service_pb2 import Discount
from coupon_service.v1.coupon_code_service_pb2 import NewCode

TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?) ?(Z|[+-]\d\d:?\d\d)?)?"
)
UTC_ASSUMED: Final = (
    "Times without a zone are taken as UTC, and a date alone as its first moment: 00:00 UTC."
)
TIME_EXPECTED: Final = "expected a time such as 2026-12-31, or 2026-12-31T18:00+01:00"
METADATA: Final = "metadata."
"""Before the name of an entry of the metadata, whose value is the text of the cell."""

PERCENT_DECIMALS_MAX: Final = 2


def _text(made: NewCode, field: str, cell: str) -> None:
    setattr(made, field, cell)


def _whole(made: NewCode, field: str, cell: str) -> None:
    if not cell.isdecimal() or len(cell) > 9:
        raise ValueError(f"expected a whole number, not {cell}")
    setattr(made.terms, field, int(cell))


def _time(made: NewCode, field: str, cell: str) -> None:
    try:
        moment = read_time(cell)
    except ValueError as error:
        raise ValueError(f"{TIME_EXPECTED}, not {cell}") from error
    getattr(made.terms, field).FromDatetime(moment)


def read_time(text: str) -> datetime:
    """The moment; UTC where it says no zone. Raises ValueError."""
    found = TIME.fullmatch(text)
    if found is None:
        raise ValueError(text)
    day, time, zone = found.groups()
    moment = datetime.fromisoformat(f"{day}T{time or '00:00'}{zone or '+00:00'}")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(text) from error


def time_option(text: str) -> datetime:
    """The moment that an option says, for `parser`. Raises typer.BadParameter."""
    try:
        return read_time(text)
    except ValueError as error:
        raise typer.BadParameter(f"{TIME_EXPECTED}, not {text}") from error


def _percent(made: NewCode, _: str, cell: str) -> None:
    expected = f"expected a percentage such as 15 or 12.5, not {cell}"
    try:
        share = Decimal(cell.removesuffix("%").strip().replace(",", ".")) * 100
    except InvalidOperation as error:
        raise ValueError(expected) from error
    if not share.is_finite() or share != share.to_integral_value() or not 0 < share <= 10_000:
        raise ValueError(expected)
    _only_discount(made)
    made.terms.discount.percent_off.basis_points = int(share)


def _cap(made: NewCode, _: str, cell: str) -> None:
    if not made.terms.discount.HasField("percent_off"):
        raise ValueError("expected only with percent_off")
    made.terms.discount.percent_off.max_discount_minor = _minor(cell)


def _amount(made: NewCode, _: str, cell: str) -> None:
    _only_discount(made)
    made.terms.discount.amount_off.amount_minor = _minor(cell)


def _minor(cell: str) -> int:
    if not cell.isdecimal() or len(cell) > 16:
        raise ValueError(f"expected minor units (500 for 5.00), not {cell}")
    return int(cell)


def _benefit(made: NewCode, _: str, cell: str) -> None:
    _only_discount(made)
    made.terms.discount.benefit.description = cell


def _discount(made: NewCode, _: str, cell: str) -> None:
    _only_discount(made)
    discount = Discount()
    try:
        json_format.ParseDict(in_full(_object(cell), Discount.DESCRIPTOR), discount)
    except json_format.ParseError as error:
        raise ValueError("expected a Discount as JSON") from error
    made.terms.discount.CopyFrom(discount)


def _only_discount(made: NewCode) -> None:
    if made.terms.HasField("discount"):
        raise ValueError("expected one discount")


def _metadata(made: NewCode, _: str, cell: str) -> None:
    made.terms.metadata.update(_object(cell))


def _object(cell: str) -> dict[str, Any]:
    try:
        found: Any = json.loads(cell)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return cast("dict[str, Any]", found)


FIELDS: Final[Mapping[str, Callable[[NewCode, str, str], None]]] = {
    "code": _text,
    "user_id": _text,
    "max_redemptions": _whole,
    "start_time": _time,
    "end_time": _time,
    "percent_off": _percent,
    "max_discount_minor": _cap,
    "amount_off_minor": _amount,
    "benefit": _benefit,
    "discount": _discount,
    "currency_code": _text,
    "metadata": _metadata,
}
"""What a column can hold, and what reads a cell that is not empty. In this order."""

TIMES: Final = ("start_time", "end_time")


def is_field(name: str) -> bool:
    """Whether a column can hold this."""
    return name in FIELDS or (name.startswith(METADATA) and name != METADATA)


def new_code(cells: Iterable[tuple[str, str]]) -> tuple[NewCode, Sequence[str]]:
    """A code with what the cells say, each with its field, and what is wrong with them."""
    made, problems = NewCode(), list[str]()
    for field, cell in cells:
        if not cell:
            continue
        if field.startswith(METADATA):
            made.terms.metadata[field.removeprefix(METADATA)] = cell
            continue
        try:
            FIELDS[field](made, field, cell)
        except ValueError as error:
            problems.append(f"{field}: {error}")
    return made, problems
