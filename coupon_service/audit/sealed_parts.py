"""The personal values of a row, encrypted with the key of their user: whoever destroys the key
erases them wherever copies are.

Each part of each row has a key of its own (HMAC-SHA-256 of the user's key, and the event), which
encrypts nothing else: so AES-256-GCM needs no nonce, and what is encrypted again is the same again.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from coupon_service.audit.records import MalformedError

KEY_ID_BYTES: Final = 16

PARTS: Final = (b"user", b"other", b"pair")
"""Which part of a row it is, in the order of `leaves.PARTS`."""

OPEN: Final = bytes(KEY_ID_BYTES)
"""In place of the id of a key: what is left of a part that was erased, which is not encrypted."""

_PURPOSE: Final = b"coupon-service archive\x00"
_ID_PURPOSE: Final = b"coupon-service key\x00"
_NONCE: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class SealedPart:
    """Values of a row that only the key with this id can open."""

    key_id: bytes
    content: bytes


def key_id(key: bytes) -> bytes:
    """What names a key, and says nothing of it or of its user."""
    return sha256(_ID_PURPOSE + key).digest()[:KEY_ID_BYTES]


def pair_key(user: bytes, other: bytes) -> bytes:
    """What only both keys open."""
    return hmac.digest(user, other, "sha256")


def seal_part(key: bytes, which: bytes, event_id: bytes, part: bytes) -> SealedPart:
    """The part of the row, encrypted. `which`: one of PARTS."""
    content: bytes = _cipher(key, which, event_id).encrypt(_NONCE, part, None)
    return SealedPart(key_id(key), content)


def erased_part(part: bytes) -> SealedPart:
    """What is left of a part that was erased."""
    return SealedPart(OPEN, part)


def open_part(key: bytes, which: bytes, event_id: bytes, sealed: SealedPart) -> bytes:
    """The part that was sealed with this key. Raises MalformedError when it is another one."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see the package

    try:
        return _cipher(key, which, event_id).decrypt(_NONCE, sealed.content, None)
    except InvalidTag:
        raise MalformedError("Personal values are not those that were encrypted.") from None


def _cipher(key: bytes, which: bytes, event_id: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(hmac.digest(key, _PURPOSE + which + b"\x00" + event_id, "sha256"))
