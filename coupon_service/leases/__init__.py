"""Leases: places on codes, held in Redis for a time."""

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
]
