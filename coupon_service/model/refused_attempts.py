"""What was tried and refused, as support looks it up later."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum
from typing import TypeAlias
from uuid import UUID

from coupon_service.model.books import Money
from coupon_service.model.values import value


class AttemptKind(IntEnum):
    """What was tried. The numbers are those of the contract and the database."""

    REDEEM_CODE = 1
    LOCK_CODE = 2
    VALIDATE_CODE = 3
    BATCH_REDEEM_CODES = 4


Reason: TypeAlias = tuple[str, Mapping[str, str]]
"""The name of a reason, and its metadata."""


@value(kw_only=True)
class RefusedAttempt:
    """An attempt that was refused. `told`: the reasons that the caller was told; `untold`: those
    that held as well.

    `code`: of one that is not known its mask and hash, see `RefusedCodes`. `book_id`: that of the
    code, or that the caller named. `business_id`: empty where neither book nor call has one.
    """

    refusal_id: UUID
    refuse_time: datetime
    kind: AttemptKind
    told: tuple[Reason, ...]
    untold: tuple[Reason, ...] = ()
    code: str
    book_id: UUID | None
    business_id: str
    user_id: str
    order_id: str
    order_amount: Money | None = None
    caller: str
    request_id: str
