"""Methods of AssignmentService."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from coupon_service.client.rpc import listing, unary
from coupon_service.client.values import Metadata, new_request_id, struct, timestamp
from coupon_service.v1 import assignment_service_pb2 as pb


class AssignmentMethods:
    """Assignments of codes to users."""

    @unary(pb.AssignCodeResponse)
    @staticmethod
    def assign_code(
        code: str,
        user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> pb.AssignCodeRequest:
        """Assign a given code to a user."""
        return pb.AssignCodeRequest(
            code=code,
            user_id=user_id,
            book_id=book_id,
            business_id=business_id,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.AssignRandomCodeResponse)
    @staticmethod
    def assign_random_code(
        book_id: str, user_id: str, *, metadata: Metadata | None = None, request_id: str = ""
    ) -> pb.AssignRandomCodeRequest:
        """Assign a random code of a book to a user. NoCodesAvailable when none is left."""
        return pb.AssignRandomCodeRequest(
            book_id=book_id,
            user_id=user_id,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.BatchAssignRandomCodesResponse)
    @staticmethod
    def batch_assign_random_codes(
        book_id: str,
        user_ids: Iterable[str],
        *,
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> pb.BatchAssignRandomCodesRequest:
        """Assign a random code to each of up to 1,000 users, each with its own result.
        `error_of_item` makes an exception of the error of a result.
        """
        return pb.BatchAssignRandomCodesRequest(
            book_id=book_id,
            user_ids=user_ids,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.RevokeAssignmentResponse)
    @staticmethod
    def revoke_assignment(
        code: str, user_id: str, *, business_id: str = "", request_id: str = ""
    ) -> pb.RevokeAssignmentRequest:
        """Revoke the assignment of a code to a user."""
        return pb.RevokeAssignmentRequest(
            code=code,
            user_id=user_id,
            business_id=business_id,
            request_id=request_id or new_request_id(),
        )

    @unary(pb.TransferAssignmentResponse)
    @staticmethod
    def transfer_assignment(
        code: str,
        from_user_id: str,
        to_user_id: str,
        *,
        book_id: str = "",
        business_id: str = "",
        lock_token: str = "",
        metadata: Metadata | None = None,
        request_id: str = "",
    ) -> pb.TransferAssignmentRequest:
        """Hand the code of a user over to another, who keeps its expiry. CodeLocked while
        `from_user_id` holds a lock on it whose token is not given; with it the lock is released.
        """
        return pb.TransferAssignmentRequest(
            code=code,
            from_user_id=from_user_id,
            to_user_id=to_user_id,
            book_id=book_id,
            business_id=business_id,
            lock_token=lock_token,
            metadata=struct(metadata),
            request_id=request_id or new_request_id(),
        )

    @listing(pb.ListUserCouponsResponse, lambda page: page.coupons)
    @staticmethod
    def list_user_coupons(
        user_id: str,
        *,
        book_id: str = "",
        state: pb.AssignmentState.ValueType = pb.ASSIGNMENT_STATE_UNSPECIFIED,
        page_size: int = 0,
    ) -> pb.ListUserCouponsRequest:
        """The codes that are or were assigned to a user, newest first."""
        return pb.ListUserCouponsRequest(
            user_id=user_id, book_id=book_id, state=state, page_size=page_size
        )

    @listing(pb.ListAssignmentsResponse, lambda page: page.assignments)
    @staticmethod
    def list_assignments(
        book_id: str,
        *,
        state: pb.AssignmentState.ValueType = pb.ASSIGNMENT_STATE_UNSPECIFIED,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> pb.ListAssignmentsRequest:
        """The assignments of a book, newest first, made from `start_time` on and before
        `end_time`."""
        return pb.ListAssignmentsRequest(
            book_id=book_id,
            state=state,
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            page_size=page_size,
        )
