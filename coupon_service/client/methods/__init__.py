"""The methods of the contract, with plain arguments: a class for each service."""

from __future__ import annotations

from coupon_service.client.methods.assignments import AssignmentMethods
from coupon_service.client.methods.audit import AuditMethods
from coupon_service.client.methods.books import CouponBookMethods
from coupon_service.client.methods.codes import CouponCodeMethods
from coupon_service.client.methods.redemptions import RedemptionMethods

__all__ = [
    "AssignmentMethods",
    "AuditMethods",
    "CouponBookMethods",
    "CouponCodeMethods",
    "Methods",
    "RedemptionMethods",
]


class Methods(
    CouponBookMethods, CouponCodeMethods, AssignmentMethods, RedemptionMethods, AuditMethods
):
    """Those of all services."""
