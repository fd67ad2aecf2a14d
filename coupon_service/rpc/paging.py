"""Page tokens: where the next page begins, and of which query.

A token is opaque to clients: base64url of a hash and the position as JSON. It is no secret and no
permission; the hash, of position and query, tells a token of another query, or one that was
altered, from one that this service gave out.
"""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

Position = tuple[Any, ...]
"""The sort key of the last row of a page: texts and numbers."""

HASH_BYTES: Final = 9

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


def page_token(request: Message, position: Sequence[object] | None) -> str:
    """The token for the page of the request's query after `position`; empty on the last page."""
    if position is None:
        return ""
    payload = json.dumps(position, separators=(",", ":")).encode("ascii")
    return urlsafe_b64encode(_hash(request, payload) + payload).rstrip(b"=").decode("ascii")


def page_position(request: Any) -> Position | None:
    """The position in the `page_token` of the request; None for the first page.

    Raises:
        ValueError: the token is not one for this query. The message says what was expected.
    """
    token: str = request.page_token
    if not token:
        return None
    try:
        raw = b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if _hash(request, raw[HASH_BYTES:]) != raw[:HASH_BYTES]:
        raise ValueError("expected the next_page_token of an answer to the same query")
    return tuple(json.loads(raw[HASH_BYTES:]))


def _hash(request: Message, payload: bytes) -> bytes:
    """Of the position and everything in the request that makes its result; page_size does not."""
    query = type(request)()
    query.CopyFrom(request)
    for field in ("page_token", "page_size"):
        if field in query.DESCRIPTOR.fields_by_name:
            query.ClearField(field)
    name = query.DESCRIPTOR.full_name.encode("ascii")
    text = b"\0".join((name, payload, query.SerializeToString(deterministic=True)))
    return blake2b(text, digest_size=HASH_BYTES).digest()
