"""The leaf of a row of the ledger: what of the row is proved, with commitments to what is personal.

    leaf       = SHA-256(0x00 || data)                                   RFC 6962
    data       = version || facts || commitment, or, where there is another user,
                 version || facts || commitment || that of the other user || that of the pair
    commitment = SHA-256(salt || personal values)
    salt       = BLAKE2s keyed with the key of the user, of event_id, or event_id || "pair"

`facts` and the personal values are records (`records`). Once the key of a user is destroyed and the
values are blank, nobody can tell what a commitment was to, and the leaf is still what it was.

What of a row is personal: the user's part has the user, the order, and what the caller said; the
other user's part, of an assignment that is handed over, has that user. Where the caller is one of
the two, the facts only say which, and its address and software are in the part of that user. A
fingerprint that was made of both users is apart, and erased with either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2s, sha256
from typing import Any, Final, NamedTuple

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
"""Of the key of a user: as many as keyed BLAKE2s takes."""

_LEAF_BEGINS: Final = bytes([0, VERSION])

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
    ("fingerprint", BIGINT),  # where there is no other user
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

PAIR_PART: Final[Layout] = (("fingerprint", BIGINT),)
"""What is erased with either, where there is another user."""


class Row(NamedTuple):
    """A row of the ledger as leaves are made of it. `user_id` and `other_user_id` name the keys.

    `other`, `pair`: None where there is no other user. `commitments`: as of `Commitments.packed`;
    None where nothing was erased.
    """

    sequence: int
    event_id: bytes
    user_id: str
    other_user_id: str
    facts: bytes
    user: bytes
    other: bytes | None
    pair: bytes | None
    commitments: bytes | None = None


class Commitments(NamedTuple):
    """Commitments to the parts of a row that were erased; None of one that was not."""

    user: bytes | None = None
    other: bytes | None = None
    pair: bytes | None = None

    def packed(self) -> bytes:
        """What the column `commitments` holds: which there are, then each."""
        flags = sum(1 << place for place, it in enumerate(self) if it is not None)
        return bytes([flags]) + b"".join(it for it in self if it is not None)


_NOTHING_ERASED: Final = Commitments()


def unpacked(packed: bytes | None) -> Commitments:
    """What `packed` made. Raises MalformedError."""
    if packed is None:
        return _NOTHING_ERASED
    flags, end = packed[:1], 1
    parts: list[bytes | None] = []
    for place in range(len(_NOTHING_ERASED)):
        is_there = bool(flags) and bool(flags[0] & 1 << place)
        parts.append(packed[end : end + HASH_BYTES] if is_there else None)
        end += HASH_BYTES * is_there
    commitments = Commitments(*parts)
    if not flags or flags == b"\0" or len(packed) != end or packed != commitments.packed():
        raise MalformedError("The commitments of a row are malformed.")
    return commitments


def salt_of(key: bytes, event_id: bytes) -> bytes:
    """What hides to which of a few possible values a commitment is. It opens only one row."""
    # Keyed BLAKE2s (RFC 7693) is one hash, where HMAC is two that have to be set up.
    return blake2s(event_id, key=key).digest()


def pair_salt_of(key: bytes, event_id: bytes) -> bytes:
    """That of what is of both users, by the key of the user; another one, so that it stays shut."""
    return salt_of(key, event_id + b"pair")


def commitment(salt: bytes, part: bytes) -> bytes:
    """The commitment to the personal values of a record."""
    return sha256(salt + part).digest()


def leaf_data(facts: bytes, commitments: Commitments) -> bytes:
    """What the leaf is the hash of."""
    parts = [it for it in commitments if it is not None]
    return b"".join((bytes([VERSION]), facts, *parts))


PARTS: Final = (USER_PART, OTHER_PART, PAIR_PART)
"""The layouts of what commitments are to, in their order."""


def commitments_of(row: Row, keys: Mapping[str, bytes]) -> Commitments:
    """The commitments to all parts of a row: those that it has, or else of the values.

    Raises KeyError for a user who has no key, and MalformedError.
    """
    user, other, pair = unpacked(row.commitments) if row.commitments else _NOTHING_ERASED
    if user is None:
        user = commitment(salt_of(keys[row.user_id], row.event_id), row.user)
    if row.other is not None and row.pair is not None:
        if other is None:
            other = commitment(salt_of(keys[row.other_user_id], row.event_id), row.other)
        if pair is None:
            pair = commitment(pair_salt_of(keys[row.user_id], row.event_id), row.pair)
    return Commitments(user, other, pair)


def erased(row: Row, keys: Mapping[str, bytes], *, user: bool, other: bool) -> bytes:
    """What the column `commitments` of a row has to hold when these parts of it are erased, beside
    what was erased before. Raises as `commitments_of` does.
    """
    before, now = unpacked(row.commitments), commitments_of(row, keys)
    return Commitments(
        now.user if user else before.user, now.other if other else before.other, now.pair
    ).packed()


def users_of(rows: Iterable[Row]) -> set[str]:
    """The users whose keys are needed for the leaves of these rows. Raises MalformedError."""
    users: set[str] = set()
    for row in rows:
        if row.commitments is None:
            users.add(row.user_id)
            if row.other is not None:
                users.add(row.other_user_id)
            continue
        user, other, pair = unpacked(row.commitments)
        if user is None or (pair is None and row.pair is not None):
            users.add(row.user_id)
        if other is None and row.other is not None:
            users.add(row.other_user_id)
    return users


def leaf_of(row: Row, keys: Mapping[str, bytes]) -> bytes:
    """The hash of the leaf of a row. Raises KeyError for a user who has no key, MalformedError."""
    if row.commitments is not None or row.other is not None:
        return leaf_hash(leaf_data(row.facts, commitments_of(row, keys)))
    # The same for nearly all rows, with fewer steps.
    committed = sha256(salt_of(keys[row.user_id], row.event_id) + row.user).digest()
    return sha256(_LEAF_BEGINS + row.facts + committed).digest()


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
    line = {name: columns[name] for name in ("peer", "user_agent")}
    no_line = dict.fromkeys(line)
    user, other = {**columns, **line}, {**columns, **no_line}
    if caller_is == CALLER_IS_OTHER_USER:
        user, other = {**columns, **no_line}, {**columns, **line}
    if other_user_id is not None:
        user["fingerprint"] = None
    stated = {**columns, "caller_is": caller_is, "caller": None if caller_is else caller}
    return Row(
        columns["sequence"],
        columns["event_id"].bytes,
        user_id or NOBODY,
        other_user_id or NOBODY,
        _record(FACTS, stated),
        _record(USER_PART, user),
        None if other_user_id is None else _record(OTHER_PART, other),
        None if other_user_id is None else _record(PAIR_PART, columns),
        commitments,
    )


def _record(layout: Layout, values: Mapping[str, Any]) -> bytes:
    return encode(layout, [values.get(name) for name, _ in layout])
