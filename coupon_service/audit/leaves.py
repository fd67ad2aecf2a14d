"""The leaf of a row of the ledger: what of the row is proved, with commitments to what is personal.

    leaf       = SHA-256(0x00 || data)                                   RFC 6962
    data       = version || facts || commitment || commitment of the other user, if there is one
    commitment = SHA-256(salt || personal values)
    salt       = HMAC-SHA-256(key of the user, event_id)

`facts` and the personal values are records (`records`). Once the key of a user is destroyed and the
values are blank, nobody can tell what a commitment was to, and the leaf is still what it was.

What of a row is personal: the user's part has the user, the order, and what the caller said; the
other user's part, of an assignment that is handed over, has that user. Where the caller is one of
the two, the facts only say which, and its address and software are in the part of that user.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from coupon_service.audit.merkle import HASH_BYTES, leaf_hash
from coupon_service.audit.records import (
    BIGINT,
    INTEGER,
    SMALLINT,
    TEXT,
    TIME,
    UUIDS,
    Layout,
    MalformedError,
    encode,
)

VERSION: Final = 1
"""Of what a leaf consists. More columns make another version; a seal says which its leaves have."""

KEY_BYTES: Final = 32
"""Of the key of a user."""

NOBODY: Final = ""
"""Whose key is for rows that are about no user; it is never destroyed."""

FACTS: Final[Layout] = (
    ("sequence", BIGINT),
    ("event_id", UUIDS),
    ("book_id", UUIDS),
    ("event_time", TIME),
    ("bucket", SMALLINT),
    ("type", SMALLINT),
    ("state_before", SMALLINT),
    ("state_after", SMALLINT),
    ("code_redemptions", INTEGER),
    ("code_redemption_limit", INTEGER),
    ("user_code_redemptions", INTEGER),
    ("order_amount_minor", BIGINT),
    ("discount_minor", BIGINT),
    ("fence", BIGINT),
    ("expire_time", TIME),
    ("redemption_id", UUIDS),
    ("lock_id", UUIDS),
    ("code", TEXT),
    ("caller_is", SMALLINT),
    ("caller", TEXT),
    ("request_id", TEXT),
    ("currency_code", TEXT),
    ("benefit", TEXT),
    ("book_version", INTEGER),
)
"""What is proved of a row and never erased. `caller_is`: a value of CALLER_IS."""

CALLER_IS_ITSELF: Final = 0
CALLER_IS_USER: Final = 1
CALLER_IS_OTHER_USER: Final = 2

USER_PART: Final[Layout] = (
    ("user_id", TEXT),
    ("order_id", TEXT),
    ("order_user_id", TEXT),
    ("fingerprint", BIGINT),
    ("metadata", TEXT),
    ("peer", TEXT),
    ("user_agent", TEXT),
)
"""What is erased with the user. `metadata` is the text that PostgreSQL makes of it."""

OTHER_PART: Final[Layout] = (
    ("other_user_id", TEXT),
    ("peer", TEXT),
    ("user_agent", TEXT),
)
"""What is erased with the other user."""

_USER_ERASED: Final = 1
_OTHER_ERASED: Final = 2


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger as leaves are made of it. `user_id` and `other_user_id` name the keys.

    `other`: None where there is no other user. `commitments`: as of `Commitments.packed`; None
    where nothing was erased.
    """

    sequence: int
    event_id: bytes
    user_id: str
    other_user_id: str
    facts: bytes
    user: bytes
    other: bytes | None
    commitments: bytes | None = None


@dataclass(frozen=True, slots=True)
class Commitments:
    """Commitments to the parts of a row that were erased; None of one that was not."""

    user: bytes | None = None
    other: bytes | None = None

    def packed(self) -> bytes:
        """What the column `commitments` holds: which there are, then each."""
        flags = _USER_ERASED * (self.user is not None) | _OTHER_ERASED * (self.other is not None)
        return bytes([flags]) + (self.user or b"") + (self.other or b"")


def unpacked(packed: bytes | None) -> Commitments:
    """What `packed` made. Raises MalformedError."""
    if packed is None:
        return Commitments()
    flags, hashes = packed[:1], packed[1:]
    user = hashes[:HASH_BYTES] if flags and flags[0] & _USER_ERASED else None
    rest = hashes if user is None else hashes[HASH_BYTES:]
    other = rest if flags and flags[0] & _OTHER_ERASED else None
    commitments = Commitments(user, other)
    lengths = {len(it) for it in (user, other) if it is not None}
    if packed != commitments.packed() or lengths != {HASH_BYTES}:
        raise MalformedError("The commitments of a row are malformed.")
    return commitments


def salt_of(key: bytes, event_id: bytes) -> bytes:
    """What hides to which of a few possible values a commitment is. It opens only one row."""
    return hmac.digest(key, event_id, "sha256")


def commitment(salt: bytes, part: bytes) -> bytes:
    """The commitment to the personal values of a record."""
    return sha256(salt + part).digest()


def leaf_data(facts: bytes, user: bytes, other: bytes | None) -> bytes:
    """What the leaf is the hash of. `user`, `other`: commitments."""
    return bytes([VERSION]) + facts + user + (other or b"")


def commitments_of(row: Row, keys: Mapping[str, bytes]) -> tuple[bytes, bytes | None]:
    """The commitments to both parts of a row: those that it has, or else of the values.

    Raises KeyError for a user who has no key, and MalformedError.
    """
    kept = unpacked(row.commitments) if row.commitments is not None else None
    user = kept.user if kept is not None else None
    if user is None:
        user = sha256(hmac.digest(keys[row.user_id], row.event_id, "sha256") + row.user).digest()
    other = kept.other if kept is not None else None
    if other is None and row.other is not None:
        other = commitment(salt_of(keys[row.other_user_id], row.event_id), row.other)
    return user, other


def leaf_of(row: Row, keys: Mapping[str, bytes]) -> bytes:
    """The hash of the leaf of a row. Raises KeyError for a user who has no key, MalformedError."""
    return leaf_hash(leaf_data(row.facts, *commitments_of(row, keys)))


def row_of(columns: Mapping[str, Any], commitments: bytes | None = None) -> Row:
    """The row that PostgreSQL makes of these columns; one that is missing has no value.

    It is the definition: what `store.seals` selects has to be the same, byte for byte.
    """
    user_id, other_user_id = columns.get("user_id"), columns.get("other_user_id")
    caller = columns["caller"]
    caller_is = CALLER_IS_ITSELF
    if caller == user_id:
        caller_is = CALLER_IS_USER
    elif caller == other_user_id:
        caller_is = CALLER_IS_OTHER_USER
    is_of_other = caller_is == CALLER_IS_OTHER_USER
    line = {name: columns[name] for name in ("peer", "user_agent")}
    stated = {
        **columns,
        "caller_is": caller_is,
        "caller": None if caller_is else caller,
    }
    user = {**columns, **(dict.fromkeys(line) if is_of_other else line)}
    other = {**columns, **(line if is_of_other else dict.fromkeys(line))}
    return Row(
        columns["sequence"],
        columns["event_id"].bytes,
        user_id or NOBODY,
        other_user_id or NOBODY,
        _record(FACTS, stated),
        _record(USER_PART, user),
        None if other_user_id is None else _record(OTHER_PART, other),
        commitments,
    )


def _record(layout: Layout, values: Mapping[str, Any]) -> bytes:
    return encode(layout, [values.get(name) for name, _ in layout])
