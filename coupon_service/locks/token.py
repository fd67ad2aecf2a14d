"""The signed lock token: what a holder shows when it redeems.

It proves what the service granted, also while Redis cannot be reached. It is
``base64url(payload + HMAC-SHA256(secret, payload))`` without padding (RFC 2104, RFC 4648-5).
The payload is the version and the claims, separated by NUL, which no id of this service contains.
Nothing in it is hidden.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from uuid import UUID

from coupon_service.errors import LockTokenMismatch
from coupon_service.model import LockClaims, LockView
from coupon_service.model.times import milliseconds_of

# The version says what the MAC is about as well, so that a MAC which the same secret makes for
# another purpose never passes for a lock.
_VERSION = "lock1\0"
_MAC_BYTES = 32
_TOKEN_CHARACTERS_MAX = 2048


def sign(claims: LockClaims, secret: bytes) -> str:
    """The token of ``claims``; URL-safe. Raises ValueError when the user_id contains NUL."""
    ids = (claims.code, claims.book_id.hex, claims.user_id, claims.lock_id.hex)
    if any("\0" in text for text in ids):
        raise ValueError("an id in a lock token contains NUL")
    payload = _VERSION + "\0".join((*ids, str(claims.fence), str(claims.expire_ms)))
    return _seal(payload.encode(), secret).decode()


def verify(token: str, secrets: Sequence[bytes]) -> LockClaims:
    """The claims of a token that was signed with one of ``secrets``.

    Raises LockTokenMismatch for anything else, however it is malformed.
    """
    if len(token) > _TOKEN_CHARACTERS_MAX or not token.isascii():
        raise LockTokenMismatch
    shown = token.encode()
    try:
        payload = urlsafe_b64decode(shown + b"=" * (-len(shown) % 4))[:-_MAC_BYTES]
    except ValueError:
        raise LockTokenMismatch from None
    # The whole token is made anew and compared: there is exactly one spelling of it.
    if not any(hmac.compare_digest(_seal(payload, secret), shown) for secret in secrets):
        raise LockTokenMismatch
    if not payload.startswith(_VERSION.encode()):
        raise LockTokenMismatch
    claims = payload.decode().removeprefix(_VERSION)
    code, book_id, user_id, lock_id, fence, expire_ms = claims.split("\0")
    return LockClaims(
        lock_id=UUID(lock_id),
        code=code,
        book_id=UUID(book_id),
        user_id=user_id,
        fence=int(fence),
        expire_ms=int(expire_ms),
    )


class LockTokens:
    """Signs lock tokens with the first secret and verifies them with any of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secrets)

    def sign(self, lock: LockView) -> str:
        """The token of a lock."""
        claims = LockClaims(
            lock_id=lock.lock_id,
            code=lock.code,
            book_id=lock.book_id,
            user_id=lock.user_id,
            fence=lock.fence,
            expire_ms=milliseconds_of(lock.expire_time),
        )
        return sign(claims, self._secrets[0])

    def verify(self, token: str) -> LockClaims:
        """What the token proves. Raises LockTokenMismatch."""
        return verify(token, self._secrets)


def _seal(payload: bytes, secret: bytes) -> bytes:
    return urlsafe_b64encode(payload + hmac.digest(secret, payload, "sha256")).rstrip(b"=")
