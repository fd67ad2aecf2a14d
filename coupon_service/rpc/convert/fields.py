"""The checks that requests share. Bounds are those of the comments in the proto."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from coupon_service.errors import FieldViolation, InvalidArgument
from coupon_service.model import Money
from coupon_service.model.normalization import (
    EXPECTED,
    ID_LENGTH_MAX,
    NO_CODE,
    CodeTooLong,
    canonical_id,
    normalize_code,
)
from coupon_service.model.pseudonyms import PREFIX as PSEUDONYM_PREFIX
from coupon_service.model.pseudonyms import is_pseudonym
from coupon_service.model.time_zones import time_zone
from coupon_service.rpc.convert.values import EPOCH, from_duration_ms, from_struct, from_timestamp
from coupon_service.rpc.paging import PageTokens, Position
from coupon_service.v1.money_pb2 import Money as MoneyMessage

AMOUNT_MAX_MINOR: Final = 10**15
TTL_MAX_MS: Final = 86_400_000
PAGE_SIZE_MAX: Final = 1_000
PAGE_SIZE_DEFAULT: Final = 50

UUID_TEXT: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
REQUEST_ID: Final = re.compile(r"[!-~]{1,64}")
CURRENCY_CODE: Final = re.compile(r"[A-Z]{3}")
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
CONTROL_IN_LINES: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

UNSEEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"})
"""Of Unicode: controls, spaces, and marks, which are seen only on another character."""

BLANK: Final = re.compile(
    "[\u115f\u1160\u2800\u3164\uffa0\U0001d159"  # letters and symbols without a shape
    "\u2065\ufff0-\uffff\U000e0000-\U000e0fff]"  # not assigned, and not to be shown once they are
)

NO_ID: Final = UUID(int=0)
"""Stands for a bad id until the request is refused."""

D = TypeVar("D")
E = TypeVar("E", bound=IntEnum)


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is asked for: so many rows after a position."""

    size: int
    after: Position | None


class Fields:
    """Reads the fields of one request and remembers what is wrong with them.

    Each method takes the name of a field and its value and returns what it means; for a bad one,
    anything of the right type. `check` then refuses the request, with all that was wrong.
    """

    __slots__ = ("_path", "_violations")

    def __init__(self, path: str = "", violations: list[FieldViolation] | None = None) -> None:
        self._path = path
        self._violations: list[FieldViolation] = [] if violations is None else violations

    def within(self, path: str) -> Fields:
        """The fields of a message inside this one."""
        return Fields(f"{self._path}{path}.", self._violations)

    def refuse(self, field: str, expected: str) -> None:
        """This field is bad."""
        self._violations.append(FieldViolation(f"{self._path}{field}", expected))

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """All that was wrong, for whoever refuses a part of the request only."""
        return tuple(self._violations)

    def check(self) -> None:
        """Raises InvalidArgument when a field was bad."""
        if self._violations:
            raise InvalidArgument(tuple(self._violations))

    # --- text -----------------------------------------------------------------------------------

    def text(self, field: str, value: str, max_characters: int, *, optional: bool = False) -> str:
        """One line without spaces around it; when `optional`, perhaps an empty one."""
        if not value and optional:
            return value
        if not 0 < len(value) <= max_characters:
            self.refuse(field, f"expected 1 to {max_characters} characters")
        elif not value.isprintable() and CONTROL.search(value):
            self.refuse(field, "expected no control characters")
        elif value.strip() != value:
            self.refuse(field, "expected no space at the beginning or end")
        elif not any(map(_is_visible, value)):
            self.refuse(field, "expected a visible character")
        return value

    def lines(self, field: str, value: str, max_characters: int) -> str:
        """Any number of lines."""
        if len(value) > max_characters:
            self.refuse(field, f"expected at most {max_characters} characters")
        elif CONTROL_IN_LINES.search(value):
            self.refuse(field, "expected no control characters but tabs and line ends")
        return value

    def identifier(
        self, field: str, value: str, *, optional: bool = False, erased: bool = False
    ) -> str:
        """The id of something that belongs to the caller, in NFC: a business, a user, an order.

        `erased`: a pseudonym is one too.
        """
        if value.startswith(PSEUDONYM_PREFIX) and not erased and is_pseudonym(value):
            self.refuse(field, "expected no pseudonym of who was erased")
        ascii_only = value.isascii() and value.isprintable()
        if ascii_only and 0 < len(value) <= ID_LENGTH_MAX and value.strip() == value:
            return value  # nearly all of them, at once
        return self.text(field, canonical_id(value), ID_LENGTH_MAX, optional=optional)

    def uuid(self, field: str, value: str) -> UUID:
        """An id that this service gave out."""
        if UUID_TEXT.fullmatch(value):
            return UUID(value)
        self.refuse(field, "expected a UUID")
        return NO_ID

    def optional_uuid(self, field: str, value: str) -> UUID | None:
        """As `uuid`; None when it is empty."""
        return self.uuid(field, value) if value else None

    def code(self, field: str, value: str) -> str:
        """A code as a person typed it, normalised; NO_CODE for what cannot be one.

        What a shopper types is no fault of the program that passes it on: it is looked up, and not
        found. Only what is too long, or not there at all, is refused.
        """
        try:
            return normalize_code(value)
        except CodeTooLong as error:
            self.refuse(field, str(error))
        except ValueError:
            if not value:
                self.refuse(field, EXPECTED)
        return NO_CODE

    def request_id(self, value: str, *, field: str = "request_id") -> str:
        """The name of the attempt; made up when it is empty, so that every attempt has one."""
        if not value:
            return secrets.token_hex(16)
        if not REQUEST_ID.fullmatch(value):
            self.refuse(field, "expected 1 to 64 printable ASCII characters without spaces")
        return value

    def currency_code(self, field: str, value: str) -> str:
        """Three letters."""
        if not CURRENCY_CODE.fullmatch(value):
            self.refuse(field, "expected an ISO 4217 code of three upper-case letters")
        return value

    # --- numbers --------------------------------------------------------------------------------

    def whole(self, field: str, value: int, low: int, high: int) -> int:
        """A number from `low` to `high`."""
        if not low <= value <= high:
            self.refuse(field, f"expected {low:,} to {high:,}")
        return value

    def choice(self, field: str, value: int, choices: Collection[E], default: D) -> E | D:
        """One of the numbers of an enum; `default` when it is not set."""
        if not value:
            return default
        for choice in choices:
            if choice == value:
                return choice
        self.refuse(field, f"expected one of {', '.join(choice.name for choice in choices)}")
        return default

    def money(self, field: str, value: MoneyMessage) -> Money:
        """An amount, perhaps of nothing."""
        amount_minor, currency_code = value.amount_minor, value.currency_code
        if not (0 <= amount_minor <= AMOUNT_MAX_MINOR and CURRENCY_CODE.fullmatch(currency_code)):
            inside = self.within(field)
            inside.whole("amount_minor", amount_minor, 0, AMOUNT_MAX_MINOR)
            inside.currency_code("currency_code", currency_code)
        return Money(amount_minor, currency_code)

    # --- times ----------------------------------------------------------------------------------

    def milliseconds(self, field: str, value: Duration, low_ms: int, high_ms: int) -> int:
        """A duration from `low_ms` to `high_ms`."""
        try:
            milliseconds = from_duration_ms(value)
        except ValueError as error:
            self.refuse(field, str(error))
            return low_ms
        if not low_ms <= milliseconds <= high_ms:
            self.refuse(field, f"expected {low_ms / 1000:g} to {high_ms / 1000:g} seconds")
        return milliseconds

    def time(self, field: str, value: Timestamp) -> datetime:
        """A moment."""
        try:
            return from_timestamp(value)
        except ValueError as error:
            self.refuse(field, str(error))
            return EPOCH

    def optional_time(self, request: Any, field: str) -> datetime | None:
        """The moment in this field of the request; None when it is not set."""
        return self.time(field, getattr(request, field)) if request.HasField(field) else None

    def time_zone(self, field: str, name: str) -> ZoneInfo:
        """A time zone of the IANA, by its name."""
        try:
            return time_zone(name)
        except ValueError as error:
            self.refuse(field, str(error))
            return time_zone("UTC")

    # --- metadata and pages ---------------------------------------------------------------------

    def metadata(self, value: Struct, field: str = "metadata") -> str | None:
        """Anything, as JSON text; None when there is nothing in it."""
        try:
            return from_struct(value)
        except ValueError as error:
            self.refuse(field, str(error))
            return None

    def page(self, request: Any, tokens: PageTokens) -> Page:
        """Which page the request asks for."""
        size = self.whole("page_size", request.page_size, 0, PAGE_SIZE_MAX) or PAGE_SIZE_DEFAULT
        return Page(size, self.position(request, tokens))

    def position(self, request: Any, tokens: PageTokens) -> Position | None:
        """After which row the page of the request begins."""
        try:
            return tokens.position(request)
        except ValueError as error:
            self.refuse("page_token", str(error))
            return None


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return category not in UNSEEN_CATEGORIES and not BLANK.match(character)
