"""One-line calls for tests of redemptions and locks, in addition to those of Api."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import grpc
import pytest
from support.service import Api, assignments, books, reason_of, redemptions, unique

from coupon_service.v1.error_reason_pb2 import ErrorReason, ItemError

REASON_PREFIX = "ERROR_REASON_"

BEST_EFFORT = redemptions.BATCH_MODE_BEST_EFFORT
ALL_OR_NOTHING = redemptions.BATCH_MODE_ALL_OR_NOTHING


def reason_name(error: ItemError) -> str:
    """The reason of an item, in the form of ErrorInfo."""
    return ErrorReason.Name(error.reason).removeprefix(REASON_PREFIX)


def reasons_of(
    validation: redemptions.ValidateCodeResponse | redemptions.QualifiedCoupon,
) -> list[str]:
    """The reasons of all problems, in their order."""
    return [reason_name(problem) for problem in validation.problems]


def reason_or_ok(outcome: object) -> str:
    """The reason of a result of `all_at_once`, or OK."""
    return reason_of(outcome) if isinstance(outcome, grpc.RpcError) else "OK"


def tried(call: Callable[[], object]) -> str:
    """Make a call; returns the reason of its refusal, or OK."""
    try:
        return reason_or_ok(call())
    except grpc.RpcError as error:
        return reason_of(error)


# --- books and codes ----------------------------------------------------------------------------


def pause(api: Api, book_id: str, request_id: str = "") -> books.PauseCouponBookResponse:
    """ACTIVE → PAUSED."""
    request = books.PauseCouponBookRequest(
        book_id=book_id, request_id=request_id or unique("request")
    )
    return api.books.PauseCouponBook(request)


def close(api: Api, book_id: str, request_id: str = "") -> books.CloseCouponBookResponse:
    """Any state → CLOSED."""
    request = books.CloseCouponBookRequest(
        book_id=book_id, request_id=request_id or unique("request")
    )
    return api.books.CloseCouponBook(request)


def coupons(api: Api, user_id: str) -> list[assignments.UserCoupon]:
    """The present and past assignments of a user."""
    request = assignments.ListUserCouponsRequest(user_id=user_id, page_size=1_000)
    return list(api.assignments.ListUserCoupons(request).coupons)


# --- redemptions --------------------------------------------------------------------------------


def item(code: str, user_id: str, **fields: Any) -> redemptions.RedeemItem:
    """One item of a batch."""
    return redemptions.RedeemItem(code=code, user_id=user_id, **fields)


def batch(
    api: Api,
    items: Sequence[redemptions.RedeemItem],
    mode: redemptions.BatchMode.ValueType = BEST_EFFORT,
    request_id: str = "",
) -> redemptions.BatchRedeemCodesResponse:
    """Redeem many codes."""
    request = redemptions.BatchRedeemCodesRequest(
        items=items, mode=mode, request_id=request_id or unique("request")
    )
    return api.redemptions.BatchRedeemCodes(request)


def outcomes_of(response: redemptions.BatchRedeemCodesResponse) -> list[str]:
    """The outcome of each item: its reason, REPLAYED, or OK."""
    return [
        reason_name(result.error)
        if result.HasField("error")
        else ("REPLAYED" if result.replayed else "OK")
        for result in response.results
    ]


def redemption(api: Api, redemption_id: str) -> redemptions.Redemption:
    """The current state of a redemption."""
    request = redemptions.GetRedemptionRequest(redemption_id=redemption_id)
    return api.redemptions.GetRedemption(request).redemption


# --- locks --------------------------------------------------------------------------------------


def locking_code(api: Api, uses: int = 1, **fields: Any) -> str:
    """The only code of a new active book with locking, with so many uses."""
    limits = books.BookLimits(max_redemptions_per_code=uses)
    return api.code(**{"lock_policy": books.LOCK_POLICY_OPTIONAL, "limits": limits, **fields})


def extend(
    api: Api, lock_token: str, *, ttl_s: float | None = None, request_id: str = ""
) -> redemptions.ExtendLockResponse:
    """Extend a lock."""
    request = redemptions.ExtendLockRequest(
        lock_token=lock_token, request_id=request_id or unique("request")
    )
    if ttl_s is not None:
        request.ttl.FromTimedelta(timedelta(seconds=ttl_s))
    return api.redemptions.ExtendLock(request)


def unlock_by_id(api: Api, lock_id: str) -> redemptions.UnlockCodeResponse:
    """Release a lock by its id, as an operator."""
    request = redemptions.UnlockCodeRequest(lock_id=lock_id, request_id=unique("request"))
    return api.redemptions.UnlockCode(request)


def get_lock(api: Api, lock_id: str) -> redemptions.Lock:
    """The current state of a lock."""
    return api.redemptions.GetLock(redemptions.GetLockRequest(lock_id=lock_id)).lock


def locks_of(api: Api, **whose: str) -> list[redemptions.Lock]:
    """The live locks of a user or of a book."""
    request = redemptions.ListLocksRequest(page_size=1_000, **whose)
    return list(api.redemptions.ListLocks(request).locks)


def ttl_s(lock: redemptions.Lock) -> float:
    """The lifetime that a lock was granted with."""
    granted = lock.expire_time.ToDatetime() - lock.create_time.ToDatetime()
    return granted.total_seconds()


def about(seconds: float) -> Any:
    """So many seconds, or a few more that the machine took between two calls."""
    return pytest.approx(seconds + 4, abs=5)
