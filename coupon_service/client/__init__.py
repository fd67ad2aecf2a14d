"""The client of the service: every method, with retries, locks that are held, and typed errors.

with CouponClient("coupons:50051", token=fresh_token) as client:
    client.redeem_code("SPRING-0001", "ann", order_id="order-1", request_id="order-1-redeem")
"""

from __future__ import annotations

from coupon_service.client.asynchronous import AsyncCouponClient
from coupon_service.client.audit_proofs import verify_audit_proof
from coupon_service.client.blocking import CouponClient
from coupon_service.client.error_details import error_of_item
from coupon_service.client.errors import CouponError
from coupon_service.client.holds import HeldLock
from coupon_service.client.settings import ClientSettings
from coupon_service.client.values import new_request_id
from coupon_service.v1.money_pb2 import Money

__all__ = [
    "AsyncCouponClient",
    "ClientSettings",
    "CouponClient",
    "CouponError",
    "HeldLock",
    "Money",
    "error_of_item",
    "new_request_id",
    "verify_audit_proof",
]
