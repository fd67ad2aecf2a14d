"""Leases: permits on codes, held in Redis for a time."""

from coupon_service.leases.leases import Leases
from coupon_service.leases.results import (
    AcquireResult,
    AcquireStatus,
    Admission,
    AdmitStatus,
    IndexedLock,
    LeaseKey,
    LeaseRequest,
    LeaseStats,
    Peek,
    Predecessor,
    ReleaseRequest,
    TransientResult,
)

__all__ = [
    "AcquireResult",
    "AcquireStatus",
    "Admission",
    "AdmitStatus",
    "IndexedLock",
    "LeaseKey",
    "LeaseRequest",
    "LeaseStats",
    "Leases",
    "Peek",
    "Predecessor",
    "ReleaseRequest",
    "TransientResult",
]
