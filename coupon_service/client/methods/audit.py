"""Methods of AuditService."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from coupon_service.client.rpc import listing, unary
from coupon_service.client.values import new_request_id, timestamp
from coupon_service.v1 import audit_service_pb2 as pb


class AuditMethods:
    """The audit ledger."""

    @listing(pb.ListAuditEventsResponse, lambda page: page.events)
    @staticmethod
    def list_audit_events(
        *,
        book_id: str = "",
        code: str = "",
        user_id: str = "",
        order_id: str = "",
        business_id: str = "",
        types: Iterable[pb.AuditEventType.ValueType] = (),
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        oldest_first: bool = False,
        page_size: int = 0,
    ) -> pb.ListAuditEventsRequest:
        """Changes, newest first, or those that are complete, oldest first. All filters are combined
        with AND; times need a time zone.
        """
        return pb.ListAuditEventsRequest(
            book_id=book_id,
            code=code,
            user_id=user_id,
            order_id=order_id,
            business_id=business_id,
            types=types,
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            oldest_first=oldest_first,
            page_size=page_size,
        )

    @listing(pb.WatchAuditEventsResponse, lambda message: (message,))
    @staticmethod
    def watch_audit_events(
        *,
        book_id: str = "",
        code: str = "",
        user_id: str = "",
        order_id: str = "",
        business_id: str = "",
        types: Iterable[pb.AuditEventType.ValueType] = (),
        start_time: datetime | None = None,
        from_now: bool = False,
        stop_at_end: bool = False,
        resume_token: str = "",
    ) -> pb.WatchAuditEventsRequest:
        """Messages with the next changes, oldest first, each with a `resume_token` to go on from.
        New ones for as long as the loop goes on; without any, an empty message every few seconds.
        With `stop_at_end` the loop ends when all there is has come.

        It begins at the first change, at a time, or now; or, with a token of the same arguments,
        after the message that had it. Cut connections and restarts of the service are survived.
        """
        request = pb.WatchAuditEventsRequest(
            book_id=book_id,
            code=code,
            user_id=user_id,
            order_id=order_id,
            business_id=business_id,
            types=types,
            start_time=timestamp(start_time),
            stop_at_end=stop_at_end,
            resume_token=resume_token,
        )
        if from_now:
            request.from_now = True
        return request

    @listing(pb.EraseUserResponse, lambda progress: (progress,))
    @staticmethod
    def erase_user(user_id: str, *, request_id: str = "") -> pb.EraseUserRequest:
        """Erase a user, with a message after each step. It is done when the iterator ends. One that
        was abandoned goes on where it was with any other call for the user.
        """
        return pb.EraseUserRequest(user_id=user_id, request_id=request_id or new_request_id())

    @unary(pb.GetErasureResponse)
    @staticmethod
    def get_erasure(user_id: str) -> pb.GetErasureRequest:
        """How far the erasure of a user has come, and what it has changed."""
        return pb.GetErasureRequest(user_id=user_id)

    @listing(pb.VerifyAuditResponse, lambda progress: (progress,))
    @staticmethod
    def verify_audit(
        *,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        shard: str = "",
        business_id: str = "",
    ) -> pb.VerifyAuditRequest:
        """Compare the ledger with its seals, or with those of a time, with a message after each
        seal. The last one has `done`; `findings` of any say what is wrong."""
        return pb.VerifyAuditRequest(
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            shard=shard,
            business_id=business_id,
        )

    @unary(pb.GetAuditProofResponse)
    @staticmethod
    def get_audit_proof(event_id: str, *, checkpoint_number: int = 0) -> pb.GetAuditProofRequest:
        """The proof that an event is in the ledger as it was sealed: for verify_audit_proof."""
        return pb.GetAuditProofRequest(event_id=event_id, checkpoint_number=checkpoint_number)

    @unary(pb.GetAuditCheckpointResponse)
    @staticmethod
    def get_audit_checkpoint(
        *, number: int = 0, shard: str = "", business_id: str = ""
    ) -> pb.GetAuditCheckpointRequest:
        """A signed statement of what the ledger was at a seal, by default the newest; with several
        shards and neither `shard` nor `business_id` one of each, one after the other."""
        return pb.GetAuditCheckpointRequest(number=number, shard=shard, business_id=business_id)
