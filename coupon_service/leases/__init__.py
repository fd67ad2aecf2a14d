"""Leases: places on codes, held in Redis for a time."""

from coupon_service.leases.leases import Leases
from coupon_service.leases.results import (
    AcquireResult,
    Admission,
    AdmitStatus,
    IndexedLock,
    LeaseRequest,
    LeaseStats,
    Peek,
    ReleaseRequest,
    TakeStatus,
    TransientResult,
)

__all__ = [
    "AcquireResult",
    "Admission",
    "AdmitStatus",
    "IndexedLock",
    "LeaseRequest",
    "LeaseStats",
    "Leases",
    "Peek",
    "ReleaseRequest",
    "TakeStatus",
    "TransientResult",
]
