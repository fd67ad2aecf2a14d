"""Scopes: within which a code is unique, and the ids that carry one.

Codes of books from before `coupon-service migrate finish` are unique over all businesses, those of
later books within their business. The id of a book says which, for good: so nobody has to switch at
a moment, and what was stored or locked under one form is never looked for under the other.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final
from uuid import UUID

ALL_BUSINESSES: Final = 0
"""The scope of codes that are unique over all businesses."""

SCOPE_BITS: Final = 56

# An id of 128 bits: mark 8, scope 40, version 4, scope 12, variant 2, scope 4, attempt 58. Ids of
# other books begin with a bucket, which is less than 64.
_MARK: Final = 0xB0
_VERSION: Final = 8
_VARIANT: Final = 0b10
_ATTEMPT_MASK: Final = (1 << 58) - 1

SCOPED_EVENT: Final = 0x40
"""Set in the first byte of the id of an event whose scope is a business; the rest is a bucket."""

BUCKET_MASK: Final = 0x3F


@lru_cache(4_096)
def scope_of_business(business_id: str) -> int:
    """The number that stands for a business in the keys of its codes: 56 bits of a hash.

    Two businesses of one number, of which there is a chance of one in a million among 380,000,
    could not have the same code; nothing else is wrong with it, since books know their business.
    """
    return int.from_bytes(blake2b(business_id.encode(), digest_size=7).digest(), "big") or 1


def bucket_of_scope(scope: int) -> int:
    """The bucket of a business, 0 to 255: a stable hash, which its new ids carry in a byte."""
    return scope >> (SCOPE_BITS - 8)


def shard_of_scope(scope: int, shards: int) -> int:
    """Which of so many shards a business lies in, from 0: each has as many buckets as the others,
    or one more."""
    return bucket_of_scope(scope) * shards >> 8


def shard_of_book(book_id: str, shards: int) -> int:
    """Which of so many shards has a book; the first for what is not the id of a scoped one, which
    no shard has. `book_id`: as text."""
    return shard_of_scope(scope_of_book_named(book_id), shards)


def scope_of_book_named(text: str) -> int:
    """As `scope_of_book`, of an id as text; ALL_BUSINESSES for what is not one."""
    try:
        return scope_of_book(UUID(text))
    except ValueError:
        return ALL_BUSINESSES


def scoped_book_id(attempt: UUID, business_id: str) -> UUID:
    """The id of a book whose codes are unique within its business, made by this attempt.

    Its first two bytes are a mark and the bucket of the business.
    """
    scope = scope_of_business(business_id)
    return UUID(
        int=_MARK << 120
        | (scope >> 16) << 80
        | _VERSION << 76
        | ((scope >> 4) & 0xFFF) << 64
        | _VARIANT << 62
        | (scope & 0xF) << 58
        | attempt.int & _ATTEMPT_MASK
    )


def scope_of_book(book_id: UUID) -> int:
    """Within which the codes of a book are unique: the number of its business, or
    ALL_BUSINESSES."""
    number = book_id.int
    if number >> 120 != _MARK or (number >> 76) & 0xF != _VERSION:
        return ALL_BUSINESSES
    return (
        ((number >> 80) & ((1 << 40) - 1)) << 16
        | ((number >> 64) & 0xFFF) << 4
        | (number >> 58) & 0xF
    )


FIRST_SCOPED_BOOK: Final = UUID(int=_MARK << 120)
LAST_SCOPED_BOOK: Final = UUID(int=((_MARK + 1) << 120) - 1)
"""The ids of all scoped books lie between these two."""


def scoped_event_id(event_id: UUID, scope: int) -> UUID:
    """The id of an attempt on a code of a scoped book; `event_id`: what it is in other books.

    So the same caller can use one request_id for codes of one name in several businesses. It begins
    with the bucket of the code, marked, and that of the business.
    """
    digest = bytearray(blake2b(event_id.bytes + scope.to_bytes(8, "big"), digest_size=16).digest())
    digest[0] = event_id.bytes[0] | SCOPED_EVENT
    digest[1] = bucket_of_scope(scope)
    digest[6] = _VERSION << 4 | digest[6] & 0x0F
    digest[8] = _VARIANT << 6 | digest[8] & 0x3F
    return UUID(bytes=bytes(digest))


def shard_of_event(event_id: UUID, shards: int) -> int:
    """Which of so many shards has the row of an attempt on a code of a scoped book; 0 for the id of
    another, which no shard has."""
    return event_id.bytes[1] * shards >> 8 if is_scoped_event(event_id) else 0


def is_scoped_event(event_id: UUID) -> bool:
    """Whether it is the id of an attempt on a code of a scoped book."""
    return bool(event_id.int >> 126 & 1)


def name_of_locks(code: str, book_id: str) -> str:
    """Under which name Redis has the locks of a code. `book_id`: as text.

    Codes of scoped books carry their book, since others may have the same code. No code has a
    slash.
    """
    scoped = book_id.startswith("b0") and scope_of_book(UUID(book_id))
    return f"{code}/{book_id}" if scoped else code
