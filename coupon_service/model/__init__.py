"""What the service speaks about: books, codes, assignments, ledger events, commands, outcomes.

Everything here is a value: frozen, free of I/O, compared by content. Money is in minor units, times
are aware datetimes in UTC.
"""

from coupon_service.model.books import (
    AmountOff,
    Benefit,
    Book,
    BookLimits,
    BookStats,
    Discount,
    Money,
    PercentOff,
)
from coupon_service.model.commands import (
    Assign,
    AssignRandom,
    Call,
    ChangeLock,
    CodeCommand,
    Command,
    Lease,
    Lock,
    LockClaims,
    Redeem,
    Revoke,
    Rollback,
    SwitchCode,
    Unit,
)
from coupon_service.model.decisions import (
    Done,
    Effects,
    LeaseNeeded,
    Outcome,
    State,
)
from coupon_service.model.enums import (
    AssignmentPolicy,
    AssignmentState,
    BookState,
    CodeState,
    EventType,
    LockPolicy,
    LockState,
)
from coupon_service.model.identity import (
    bucket_of_book,
    bucket_of_event,
    bucket_of_user,
    event_id,
    fingerprint,
)
from coupon_service.model.records import (
    Assignment,
    Code,
    Event,
    LockView,
    UserCounts,
)

__all__ = [
    "AmountOff",
    "Assign",
    "AssignRandom",
    "Assignment",
    "AssignmentPolicy",
    "AssignmentState",
    "Benefit",
    "Book",
    "BookLimits",
    "BookState",
    "BookStats",
    "Call",
    "ChangeLock",
    "Code",
    "CodeCommand",
    "CodeState",
    "Command",
    "Discount",
    "Done",
    "Effects",
    "Event",
    "EventType",
    "Lease",
    "LeaseNeeded",
    "Lock",
    "LockClaims",
    "LockPolicy",
    "LockState",
    "LockView",
    "Money",
    "Outcome",
    "PercentOff",
    "Redeem",
    "Revoke",
    "Rollback",
    "State",
    "SwitchCode",
    "Unit",
    "UserCounts",
    "bucket_of_book",
    "bucket_of_event",
    "bucket_of_user",
    "event_id",
    "fingerprint",
]
