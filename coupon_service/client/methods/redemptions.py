"""Methods of RedemptionService."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from coupon_service.client.rpc import listing, unary
from coupon_service.client.values import Metadata, duration, new_request_id, struct, timestamp
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money


class RedemptionMethods:
    """Validating, locking, redeeming codes."""

    @unary(pb.ValidateCodeResponse)
    @staticmethod
    def validate_code(
        code: str,
        user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        order_id: str = "",
        order_amount: Money | None = None,
        lock_token: str = "",
    ) -> pb.ValidateCodeRequest:
        """A dry run of redeem_code: all reasons why it would be refused now, and the discount that
        it would give. Changes nothing; a code that does not exist is a reason, not an error.
        """
        return pb.ValidateCodeRequest(
            code=code,
            user_id=user_id,
            book_id=book_id,
            business_id=business_id,
            order_id=order_id,
            order_amount=order_amount,
            lock_token=lock_token,
        )

    @unary(pb.QualifyCouponsResponse)
    @staticmethod
    def qualify_coupons(
        user_id: str,
        codes: Sequence[str] = (),
        *,
        order_id: str = "",
        order_amount: Money | None = None,
        business_id: str = "",
    ) -> pb.QualifyCouponsRequest:
        """Which of the user's live coupons, and of up to 20 named codes, could be redeemed now, why
        the others could not, and what each takes off: the best first. Changes nothing.
        """
        return pb.QualifyCouponsRequest(
            user_id=user_id,
            codes=codes,
            order_id=order_id,
            order_amount=order_amount,
            business_id=business_id,
        )

    @unary(pb.LockCodeResponse)
    @staticmethod
    def lock_code(
        code: str,
        user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        ttl_s: float | None = None,
        lock_token: str = "",
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> pb.LockCodeRequest:
        """Reserve one redemption of a code for a user, for a limited time: `hold` is easier.
        Without `ttl_s` for as long as the book says. CodeLocked when others hold it. With the
        `lock_token` of another user, such as a guest who has logged in, that lock goes over.
        """
        return pb.LockCodeRequest(
            code=code,
            user_id=user_id,
            book_id=book_id,
            business_id=business_id,
            ttl=duration(ttl_s),
            lock_token=lock_token,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.ExtendLockResponse)
    @staticmethod
    def extend_lock(
        lock_token: str, *, ttl_s: float | None = None, request_id: str = ""
    ) -> pb.ExtendLockRequest:
        """Extend a lock to `ttl_s` from now, as often as the service allows: LockLimitExceeded. The
        response has a new token.
        """
        return pb.ExtendLockRequest(
            lock_token=lock_token, ttl=duration(ttl_s), request_id=request_id or new_request_id()
        )

    @unary(pb.UnlockCodeResponse)
    @staticmethod
    def unlock_code(
        lock_token: str = "", *, lock_id: str = "", request_id: str = ""
    ) -> pb.UnlockCodeRequest:
        """Release a lock before its expiry: by its token, or, for operators, by its id."""
        request = pb.UnlockCodeRequest(request_id=request_id or new_request_id())
        if lock_id:
            request.lock_id = lock_id
        if lock_token or not lock_id:
            request.lock_token = lock_token
        return request

    @unary(pb.GetLockResponse)
    @staticmethod
    def get_lock(lock_id: str) -> pb.GetLockRequest:
        """A lock, live or not."""
        return pb.GetLockRequest(lock_id=lock_id)

    @listing(pb.ListLocksResponse, lambda page: page.locks)
    @staticmethod
    def list_locks(
        *, user_id: str = "", book_id: str = "", page_size: int = 0
    ) -> pb.ListLocksRequest:
        """The live locks of a user or of a book, the next to expire first."""
        request = pb.ListLocksRequest(page_size=page_size)
        if user_id:
            request.user_id = user_id
        elif book_id:
            request.book_id = book_id
        return request

    @unary(pb.RedeemCodeResponse)
    @staticmethod
    def redeem_code(
        code: str,
        user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        order_id: str = "",
        order_amount: Money | None = None,
        lock_token: str = "",
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> pb.RedeemCodeRequest:
        """Redeem a code once. When this returns the redemption is durable."""
        return pb.RedeemCodeRequest(
            code=code,
            user_id=user_id,
            book_id=book_id,
            business_id=business_id,
            order_id=order_id,
            order_amount=order_amount,
            lock_token=lock_token,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.BatchRedeemCodesResponse)
    @staticmethod
    def batch_redeem_codes(
        items: Sequence[pb.RedeemItem],
        *,
        mode: pb.BatchMode.ValueType = pb.BATCH_MODE_BEST_EFFORT,
        business_id: str = "",
        request_id: str = "",
    ) -> pb.BatchRedeemCodesRequest:
        """Redeem up to 1,000 codes, each with its own result, or with BATCH_MODE_ALL_OR_NOTHING all
        or none. `error_of_item` makes an exception of the error of a result.
        """
        return pb.BatchRedeemCodesRequest(
            items=items,
            mode=mode,
            business_id=business_id,
            request_id=request_id or new_request_id(),
        )

    @unary(pb.RollbackRedemptionResponse)
    @staticmethod
    def rollback_redemption(
        redemption_id: str, *, metadata: Metadata | None = None, request_id: str = ""
    ) -> pb.RollbackRedemptionRequest:
        """Roll a redemption back, once, so that the code can be used again."""
        return pb.RollbackRedemptionRequest(
            redemption_id=redemption_id,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.AdjustRedemptionResponse)
    @staticmethod
    def adjust_redemption(
        redemption_id: str,
        order_amount: Money,
        *,
        etag: str = "",
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> pb.AdjustRedemptionRequest:
        """Say what a redemption's order comes to now: a part was returned, or more was bought. The
        discount follows.
        """
        return pb.AdjustRedemptionRequest(
            redemption_id=redemption_id,
            order_amount=order_amount,
            etag=etag,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.GetRedemptionResponse)
    @staticmethod
    def get_redemption(redemption_id: str) -> pb.GetRedemptionRequest:
        """A redemption."""
        return pb.GetRedemptionRequest(redemption_id=redemption_id)

    @listing(pb.ListRedemptionsResponse, lambda page: page.redemptions)
    @staticmethod
    def list_redemptions(
        *,
        user_id: str = "",
        book_id: str = "",
        code: str = "",
        order_id: str = "",
        business_id: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> pb.ListRedemptionsRequest:
        """Redemptions by user, book, code, order, business or time, newest first: at least one of
        these. `start_time` is inclusive, `end_time` exclusive.
        """
        return pb.ListRedemptionsRequest(
            user_id=user_id,
            book_id=book_id,
            code=code,
            order_id=order_id,
            business_id=business_id,
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            page_size=page_size,
        )

    @listing(pb.ListRefusalsResponse, lambda page: page.refusals)
    @staticmethod
    def list_refusals(
        *,
        user_id: str = "",
        code: str = "",
        order_id: str = "",
        book_id: str = "",
        business_id: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> pb.ListRefusalsRequest:
        """Refused attempts, newest first: why a code did not work. An attempt is listed about a
        second after its answer. `start_time` is inclusive, `end_time` exclusive.
        """
        return pb.ListRefusalsRequest(
            user_id=user_id,
            code=code,
            order_id=order_id,
            book_id=book_id,
            business_id=business_id,
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            page_size=page_size,
        )
