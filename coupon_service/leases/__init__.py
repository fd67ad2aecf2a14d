"""Locks of codes: places held in Redis for a time, and the signed tokens that prove them."""

from coupon_service.leases.leases import Leases
from coupon_service.leases.results import (
    Admission,
    AdmitStatus,
    Census,
    IndexedLock,
    LeaseRequest,
    Peek,
    ReleaseRequest,
    Taken,
    TakenMomentarily,
    TakeStatus,
)
from coupon_service.locks.token import sign, verify

__all__ = [
    "Admission",
    "AdmitStatus",
    "Census",
    "IndexedLock",
    "LeaseRequest",
    "Leases",
    "Peek",
    "ReleaseRequest",
    "TakeStatus",
    "Taken",
    "TakenMomentarily",
    "sign",
    "verify",
]
