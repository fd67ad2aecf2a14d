"""What stands for erased users and their orders: a keyed hash, the same each time.

Whoever has the secret can find the pseudonym of a name, and nobody the name of a pseudonym. So
limits that an erased user has used still bind when the same user comes again.
"""

from __future__ import annotations

import hmac
from base64 import b32encode
from collections.abc import Iterable, Sequence
from typing import Final

from coupon_service.model.normalization import canonical_id

PREFIX: Final = "erased-"

_DIGEST_BYTES: Final = 20
"""Of an HMAC-SHA-256 (RFC 2104); 32 characters in base 32 (RFC 4648), without padding."""

_LENGTH: Final = len(PREFIX) + 32
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")

NO_FINGERPRINT: Final = 0
"""Of a ledger row whose parameters were erased."""


def is_pseudonym(text: str | None) -> bool:
    """Whether the text stands for an erased user or order. No caller can give such an id."""
    return (
        text is not None
        and text.startswith(PREFIX)
        and len(text) == _LENGTH
        and _LETTERS.issuperset(text[len(PREFIX) :])
    )


class Pseudonyms:
    """Makes pseudonyms with the first secret, and finds those that were made with any of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secrets)

    def __bool__(self) -> bool:
        """Whether there is a secret."""
        return bool(self._secrets)

    def of_user(self, user_id: str) -> str:
        """What stands for the user once erased. There has to be a secret."""
        return self.names_of_user(user_id)[0]

    def names_of_user(self, user_id: str) -> tuple[str, ...]:
        """What may stand for the user where it was erased before; for a pseudonym nothing does."""
        return self._names("user", user_id)

    def of_order(self, order_id: str) -> str:
        """What stands for an order of an erased user. There has to be a secret."""
        return self.names_of_order(order_id)[0]

    def names_of_order(self, order_id: str) -> tuple[str, ...]:
        """What may stand for the order where it was that of an erased user."""
        return self._names("order", order_id)

    def of_users(self, user_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """`names_of_user` of each."""
        return {it: self.names_of_user(it) for it in user_ids if it}

    def of_orders(self, order_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """`names_of_order` of each."""
        return {it: self.names_of_order(it) for it in order_ids if it}

    def _names(self, kind: str, text: str) -> tuple[str, ...]:
        if is_pseudonym(text):
            return ()
        message = f"{kind}\0{canonical_id(text)}".encode()
        return tuple(_pseudonym(secret, message) for secret in self._secrets)


def _pseudonym(secret: bytes, message: bytes) -> str:
    digest = hmac.digest(secret, message, "sha256")[:_DIGEST_BYTES]
    return PREFIX + b32encode(digest).decode().lower()


NO_PSEUDONYMS: Final = Pseudonyms(())
"""Where there is no secret."""
