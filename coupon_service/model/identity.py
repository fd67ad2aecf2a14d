"""Ids of attempts, which never change, and buckets of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import product
from typing import Final, TypeAlias
from uuid import UUID
from zlib import crc32

from coupon_service.model.codes import BUCKETS, bucket_of
from coupon_service.model.enums import EventType
from coupon_service.model.normalization import id_spellings
from coupon_service.model.scopes import BUCKET_MASK

Attempt: TypeAlias = tuple[UUID, int]
"""The event_id and the fingerprint of an attempt."""


_NAMES: Final = {it: it.name for it in EventType}
"""Of each type: a look-up costs less than `name` of an enum."""


def event_id(bucket: int, event: EventType, *parts: object) -> UUID:
    """The id of the ledger row of an attempt. The same attempt always has the same id.

    It is a hash of what identifies the attempt (caller, request_id, resource), so that the primary
    key of the ledger makes every change happen at most once. The first byte is the bucket of the
    row, the rest a UUID of version 8 (RFC 9562).
    """
    text = "\x1f".join((_NAMES[event], *map(str, parts)))
    digest = bytearray(blake2b(text.encode(), digest_size=16).digest())
    digest[0] = bucket
    digest[6] = 0x80 | (digest[6] & 0x0F)
    digest[8] = 0x80 | (digest[8] & 0x3F)
    return UUID(bytes=bytes(digest))


def bucket_of_event(event: UUID) -> int:
    """The bucket of an event id. For a foreign id it is any of them."""
    return event.bytes[0] & BUCKET_MASK


def rollback_id(redemption_id: UUID) -> UUID:
    """The id of the ledger row of a rollback: the same for all callers, so there is only one."""
    return event_id(bucket_of_event(redemption_id), EventType.ROLLED_BACK, redemption_id)


def receipt_id(transfer_id: UUID) -> UUID:
    """The id of the ledger row of the assignment that was received with a transfer."""
    return event_id(bucket_of_event(transfer_id), EventType.ASSIGNED, transfer_id)


def lock_end_attempt(code: str, event: EventType, lock_id: UUID) -> Attempt:
    """What the ledger calls the end of a lock, be it released or expired: it happens once, whoever
    asks how often."""
    return event_id(bucket_of(code), event, lock_id), fingerprint(lock_id)


def fingerprint(*parameters: object) -> int:
    """A signed 64-bit hash of a call's parameters, which detects a reused request_id."""
    text = "\x1f".join(map(str, parameters))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def earlier_attempts(
    attempt: Callable[..., Attempt], ids: Sequence[str], sent: Sequence[str] = ()
) -> tuple[Attempt, ...]:
    """What else the ledger may call this attempt: before ids were compared in NFC, each spelling of
    them made another. Empty where all of them are ASCII, which has one.

    `attempt`: makes an attempt of the ids; `sent`: the ids as the caller spells them.
    """
    if all(map(str.isascii, ids)):
        return ()
    spelled = dict.fromkeys((*product(*map(id_spellings, ids)), tuple(sent)))
    return tuple(attempt(*it) for it in spelled if it and it != tuple(ids))


def bucket_of_book(book_id: UUID) -> int:
    """The bucket of ledger rows of a book as a whole."""
    return bucket_of(f"books/{book_id}")


def bucket_of_user(user_id: str) -> int:
    """The bucket of a user's counts. A user_id is any text, so it needs a hash of its own."""
    return crc32(user_id.encode()) % BUCKETS
