"""Which refusals are kept for support, and what of them.

An attempt is kept as the servicer refused it. What was refused before, by a limit or for a missing
right, says nothing of a code.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from hashlib import blake2b
from itertools import count
from random import SystemRandom
from typing import Final
from uuid import UUID, SafeUUID

from coupon_service.checkout import Validation
from coupon_service.errors import (
    Background,
    CouponServiceError,
    DatabaseUnavailable,
    DeadlineExceeded,
    ErasureInProgress,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    UserErased,
    reason_name,
)
from coupon_service.model import Lock, Redeem
from coupon_service.model.refused_attempts import AttemptKind, Reason, RefusedAttempt

UNRELATED: Final = frozenset(
    {
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        RateLimited,
        Overloaded,
        DatabaseUnavailable,
        DeadlineExceeded,
        ErasureInProgress,
        UserErased,
    }
)
"""Errors that say nothing of a code: they are in the access log and the metrics alone. Nor is a
user named again who is, or was, erased."""

PURPOSE: Final = b"refused code"
"""What the hashes are for: the key is made of a secret that has other uses."""

HASH_BYTES: Final = 16
SHOWN_MAX: Final = 2
"""Characters of an unknown code that stay readable; never more than one in four."""

NEVER_IN_CODES: Final = "?"

VALIDATIONS_REMEMBERED_MAX: Final = 10_000
"""Those of a minute, so that what is asked again and again is not sent to PostgreSQL each time."""


class RefusedCodes:
    """What is kept of a text that is no code: a mask, and a hash that only the service can make."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Made with the first of these secrets, found by any of them."""
        self._keys = [hmac.digest(it, PURPOSE, "sha256") for it in secrets]

    def kept_as(self, code: str) -> str:
        """What a normalised code that is not known is kept as."""
        return _kept_as(code, self._keys[0])

    def spellings(self, code: str) -> tuple[str, ...]:
        """All that a normalised code may be kept as, known or not."""
        return code, *(_kept_as(code, key) for key in self._keys)

    @staticmethod
    def mask_of(kept: str) -> str:
        """The mask of what is kept; empty for a code that is known."""
        mask, sign, _ = kept.partition(NEVER_IN_CODES)
        return mask if sign else ""


def _kept_as(code: str, key: bytes) -> str:
    shown = code[: min(SHOWN_MAX, len(code) // 4)]
    digest = urlsafe_b64encode(blake2b(code.encode(), key=key, digest_size=HASH_BYTES).digest())
    return f"{shown:*<{len(code)}}{NEVER_IN_CODES}{digest.decode().rstrip('=')}"


class RefusalRecorder:
    """Keeps refused attempts.

    `add`: has one written, soon, which is made of what is known when it is. That takes less time
    for many in turn. `unknown_codes`: whether attempts on codes that are not known are kept, too.
    """

    def __init__(
        self,
        add: Callable[[Callable[[], RefusedAttempt]], None],
        codes: RefusedCodes,
        now: Callable[[], datetime],
        *,
        unknown_codes: bool,
    ) -> None:
        self._add = add
        self._codes = codes
        self._now = now
        self._unknown_codes = unknown_codes
        self._first_id = SystemRandom().getrandbits(128) >> 40 << 40
        self._numbers = count()
        self._minute: datetime | None = None
        self._remembered: set[UUID] = set()

    def refused(
        self, kind: AttemptKind, command: Redeem | Lock, refusal: CouponServiceError
    ) -> None:
        """An attempt was answered with this error."""
        if type(refusal) in UNRELATED:
            return
        about = refusal.background
        if about is not None or self._unknown_codes:
            # Not the error itself: it may hold on to the frames of its call.
            told = ((reason_name(type(refusal)), refusal.metadata),)
            self._add(partial(self._attempt, kind, command, told, about, self._now()))

    def validated(self, command: Redeem, validation: Validation) -> None:
        """A dry run was answered with these problems, if any."""
        problems, book = validation.problems, validation.book
        if not problems:
            return
        about = Background(book.book_id, book.business_id) if book else problems[0].background
        if about is None and not self._unknown_codes:
            return
        minute = self._now().replace(second=0, microsecond=0)
        if minute != self._minute or len(self._remembered) >= VALIDATIONS_REMEMBERED_MAX:
            self._minute = minute
            self._remembered.clear()
        once = _id_of(command, problems, minute)
        if once not in self._remembered:
            self._remembered.add(once)
            told, kind = _reasons(problems), AttemptKind.VALIDATE_CODE
            self._add(partial(self._attempt, kind, command, told, about, minute, once))

    def _attempt(
        self,
        kind: AttemptKind,
        command: Redeem | Lock,
        told: tuple[Reason, ...],
        about: Background | None,
        time: datetime,
        refusal_id: UUID | None = None,
    ) -> RefusedAttempt:
        """`about`: None where it is not known whether there is such a code."""
        redeem = command if isinstance(command, Redeem) else None
        call = command.call
        return RefusedAttempt(
            refusal_id=refusal_id or _uuid(self._first_id + next(self._numbers)),
            refuse_time=time,
            kind=kind,
            told=told,
            untold=_reasons(about.untold) if about and about.untold else (),
            code=command.code if about else self._codes.kept_as(command.code),
            book_id=about.book_id if about else command.book_id,
            business_id=about.business_id if about else call.business_id,
            user_id=command.user_id,
            order_id=redeem.order_id if redeem else "",
            order_amount=redeem.order_amount if redeem else None,
            caller=call.caller,
            request_id=call.request_id,
        )


def _uuid(number: int) -> UUID:
    """As UUID(int=number), in a third of the time: that looks which of six forms it is given."""
    made = UUID.__new__(UUID)
    object.__setattr__(made, "int", number)
    object.__setattr__(made, "is_safe", SafeUUID.unknown)
    return made


def _reasons(errors: Iterable[CouponServiceError]) -> tuple[Reason, ...]:
    return tuple([(reason_name(type(it)), it.metadata) for it in errors])


def _id_of(command: Redeem, problems: Iterable[CouponServiceError], minute: datetime) -> UUID:
    """The same for what is to be listed once, whichever worker answers."""
    named = command.call.business_id, command.book_id, command.code, command.user_id
    names = [reason_name(type(it)) for it in problems]
    text = "\x1f".join((*map(str, named), minute.isoformat(), *names))
    return UUID(bytes=blake2b(text.encode(), digest_size=16).digest())
