"""Methods of AuditService."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from coupon_service.client.rpc import listing
from coupon_service.client.values import timestamp
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
        page_size: int = 0,
    ) -> pb.ListAuditEventsRequest:
        """Changes, newest first. All filters are combined with AND; times need a time zone."""
        return pb.ListAuditEventsRequest(
            book_id=book_id,
            code=code,
            user_id=user_id,
            order_id=order_id,
            business_id=business_id,
            types=types,
            start_time=timestamp(start_time),
            end_time=timestamp(end_time),
            page_size=page_size,
        )
