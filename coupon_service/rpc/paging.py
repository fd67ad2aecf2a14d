"""Page tokens: where the next page begins, and of which query.

A token is opaque to clients: base64url of a MAC and the position as JSON. It is no secret and no
permission. The MAC, over position and query, is what only this service can make: a token that it
did not give out, or gave out for another query, is refused.
"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from google.protobuf.message import Message

from coupon_service.model.normalization import normalize_code

Position = tuple[Any, ...]
"""The sort key of the last row of a page: texts and numbers."""

MAC_BYTES: Final = 16

TOKEN_MAX_CHARACTERS: Final = 2_048

TOKEN_FIELDS: Final = ("page_token", "resume_token")
"""One of them is that of a request."""

PURPOSE: Final = b"page1"
"""What the MAC is about: the same secret makes others, which do not pass for one of a page."""

ROWS_MAX_BYTES: Final = 3 * 1024 * 1024
"""Of the rows of a page. gRPC clients take answers of 4 MiB, and drop larger ones."""

M = TypeVar("M", bound=Message)
R = TypeVar("R")


def page_within_bounds(
    rows: Sequence[R],
    message: Callable[[R], M],
    end: Sequence[object] | None,
    position: Callable[[R], Sequence[object]],
) -> tuple[list[M], Sequence[object] | None]:
    """The messages of as many rows as an answer can hold, and where the next page begins.

    `end` is where it begins after all rows, None when they are the last; `position`: after a row.
    """
    messages: list[M] = []
    left_bytes = ROWS_MAX_BYTES
    for index, row in enumerate(rows):
        made = message(row)
        left_bytes -= made.ByteSize()
        if left_bytes < 0 and messages:
            return messages, position(rows[index - 1])
        messages.append(made)
    return messages, end


class PageTokens:
    """Makes page tokens with the first of these secrets and accepts those of any of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secrets)

    def token(self, request: Message, position: Sequence[object] | None) -> str:
        """The token for the page of the request's query after `position`; empty on the last."""
        if position is None:
            return ""
        payload = json.dumps(position, separators=(",", ":")).encode("ascii")
        return _seal(request, payload, self._secrets[0]).decode("ascii")

    def position(self, request: Any) -> Position | None:
        """The position in the token of the request; None for the first page.

        Raises:
            ValueError: the token is not one for this query. The message says what was expected.
        """
        token: str = getattr(request, _token_field(request))
        if not token:
            return None
        payload = self._payload(request, token)
        position = _position(_shape(request), payload) if payload is not None else None
        if position is None:
            field = _token_field(request).replace("page_token", "next_page_token")
            raise ValueError(f"expected the {field} of an answer to the same query")
        return position

    def _payload(self, request: Message, token: str) -> bytes | None:
        """What the token says, if it was made for this query with one of the secrets."""
        if len(token) > TOKEN_MAX_CHARACTERS or not token.isascii():
            return None
        shown = token.encode("ascii")
        try:
            payload = urlsafe_b64decode(shown + b"=" * (-len(shown) % 4))[MAC_BYTES:]
        except ValueError:
            return None
        # The whole token is made anew and compared: there is exactly one spelling of it.
        for secret in self._secrets:
            if hmac.compare_digest(_seal(request, payload, secret), shown):
                return payload
        return None


def _token_field(request: Message) -> str:
    return next(it for it in TOKEN_FIELDS if it in request.DESCRIPTOR.fields_by_name)


def _seal(request: Message, payload: bytes, secret: bytes) -> bytes:
    """The token of the position and everything in the request that makes its result."""
    query = type(request)()
    query.CopyFrom(request)
    for field in (*TOKEN_FIELDS, "page_size"):
        if field in query.DESCRIPTOR.fields_by_name:
            query.ClearField(field)
    name = query.DESCRIPTOR.full_name.encode("ascii")
    text = b"\0".join((PURPOSE, name, payload, query.SerializeToString(deterministic=True)))
    mac = hmac.digest(secret, text, "sha256")[:MAC_BYTES]
    return urlsafe_b64encode(mac + payload).rstrip(b"=")


# --- positions ------------------------------------------------------------------------------------


def _shape(request: Any) -> Sequence[Kind]:
    if getattr(request, "oldest_first", False):
        return OLDEST_FIRST
    return SHAPES[request.DESCRIPTOR.name]


def _position(shape: Sequence[Kind], payload: bytes) -> Position | None:
    """The position, None when it is not of the shape that the request's list has now."""
    try:
        position: object = json.loads(payload)
        if not isinstance(position, list) or len(cast("list[object]", position)) != len(shape):
            return None
        values = tuple(cast("list[object]", position))
        for value, (kind, read) in zip(values, shape, strict=True):
            if type(value) is not kind:
                return None
            read(value)
    except (ValueError, OverflowError, RecursionError):
        return None
    return values


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError
    return time.astimezone(UTC)


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError
    text.encode()  # raises it for half of a surrogate pair
    return text


def _number(number: int) -> int:
    if not 0 <= number < 2**63:
        raise ValueError
    return number


def _milliseconds(number: int) -> int:
    if not 0 <= number < 2**53:  # as Redis has them
        raise ValueError
    return number


Kind = tuple[type, Callable[[Any], object]]
"""The JSON type of a value of a position, and what raises ValueError for a bad one."""

TIME: Final[Kind] = (str, _time)
ID: Final[Kind] = (str, UUID)
CODE: Final[Kind] = (str, normalize_code)
TEXT: Final[Kind] = (str, _text)
MILLISECONDS: Final[Kind] = (int, _milliseconds)

NUMBER: Final[Kind] = (int, _number)

OLDEST_FIRST: Final[Sequence[Kind]] = (NUMBER, TIME, ID)
"""What a position in the ledger has, where that is read in its order."""

SHAPES: Final[Mapping[str, Sequence[Kind]]] = {
    "ListCouponBooksRequest": (TIME, ID),
    "ListCodesRequest": (CODE,),
    "ExportCodesRequest": (CODE,),
    "ListUserCouponsRequest": (TIME, CODE),
    "ListAssignmentsRequest": (TIME, CODE, TEXT),
    "ListLocksRequest": (CODE, ID, TEXT, ID, MILLISECONDS),
    "ListRedemptionsRequest": (TIME, ID),
    "ListRefusalsRequest": (TIME, ID),
    "ListAuditEventsRequest": (TIME, ID),
    "WatchAuditEventsRequest": OLDEST_FIRST,
}
"""What a position has, by the request of its list."""
