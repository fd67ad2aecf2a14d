"""Every RPC of the contract with what applies to it: one row a method, which all who ask read.

Authorization, rate limits, guess guard, size bounds, deadlines and the tables of the docs have
nothing else to go by. A method without a row cannot be served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from coupon_service.ratelimit.limiter import RateClass


class Role(StrEnum):
    """What a token can be for, as its claim `roles` names it. `self`: its subject is an end user,
    who sees and changes only what is its own; other roles beside it do not count.
    """

    ADMIN = "admin"
    ISSUER = "issuer"
    REDEEMER = "redeemer"
    AUDITOR = "auditor"
    SELF = "self"


class LookUp(Enum):
    """Which codes of its request a method looks up, so that unknown ones count as guesses."""

    NONE = auto()
    CODE = auto()
    """The one `code`, perhaps for its `user_id`."""
    CODES = auto()
    """Each of its `codes`, for its `user_id`."""
    ITEMS = auto()
    """The `code` of each of its `items`, for the item's `user_id`."""


@dataclass(frozen=True, slots=True)
class Method:
    """What applies to a method, beside what it does.

    `roles` may call it, beside admin, which may call everything. `large`: its messages have many
    items or rows, and a larger bound. `open_ended`: a call without a deadline goes on for as long
    as its client wants, as GenerateCodes of millions has to; any other gets the server's deadline.
    `carrier`: its messages are operations, each of which is a call; it is none itself.
    """

    roles: frozenset[Role]
    rate_class: RateClass
    look_up: LookUp = LookUp.NONE
    large: bool = False
    open_ended: bool = False
    carrier: bool = False


_ISSUE: Final = frozenset({Role.ISSUER})
_REDEEM: Final = frozenset({Role.REDEEMER})
_AUDIT: Final = frozenset({Role.AUDITOR})
_CHECK_OUT: Final = frozenset({Role.REDEEMER, Role.SELF})
_READ: Final = frozenset({Role.ISSUER, Role.REDEEMER, Role.AUDITOR})
_READ_OWN: Final = _READ | {Role.SELF}

_READS: Final = RateClass.READS
_CHANGES: Final = RateClass.CHANGES
_TILL: Final = RateClass.TILL

METHODS: Final[Mapping[str, Method]] = {
    "CouponBookService/CreateCouponBook": Method(_ISSUE, _CHANGES),
    "CouponBookService/GetCouponBook": Method(_READ, _READS),
    "CouponBookService/ListCouponBooks": Method(_READ, _READS),
    "CouponBookService/UpdateCouponBook": Method(_ISSUE, _CHANGES),
    "CouponBookService/ActivateCouponBook": Method(_ISSUE, _CHANGES),
    "CouponBookService/PauseCouponBook": Method(_ISSUE, _CHANGES),
    "CouponBookService/CloseCouponBook": Method(_ISSUE, _CHANGES),
    "CouponBookService/GetCouponBookStats": Method(_ISSUE | _AUDIT, _READS),
    "CouponCodeService/PreviewCodes": Method(_ISSUE, _READS),
    "CouponCodeService/GenerateCodes": Method(_ISSUE, _CHANGES, open_ended=True),
    "CouponCodeService/ImportCodes": Method(_ISSUE, _CHANGES, large=True, open_ended=True),
    "CouponCodeService/ExportCodes": Method(_ISSUE | _AUDIT, _READS, open_ended=True),
    "CouponCodeService/GetCode": Method(_READ, _READS, LookUp.CODE),
    "CouponCodeService/ListCodes": Method(_ISSUE | _AUDIT, _READS),
    "CouponCodeService/DisableCode": Method(_ISSUE, _CHANGES, LookUp.CODE),
    "CouponCodeService/EnableCode": Method(_ISSUE, _CHANGES, LookUp.CODE),
    "CouponCodeService/ChangeCodes": Method(_ISSUE, _CHANGES, large=True, open_ended=True),
    "AssignmentService/AssignCode": Method(_ISSUE, _CHANGES, LookUp.CODE),
    "AssignmentService/AssignRandomCode": Method(_ISSUE, _CHANGES),
    "AssignmentService/BatchAssignRandomCodes": Method(_ISSUE, _CHANGES, large=True),
    "AssignmentService/RevokeAssignment": Method(_ISSUE, _CHANGES, LookUp.CODE),
    "AssignmentService/TransferAssignment": Method(_ISSUE, _CHANGES, LookUp.CODE),
    "AssignmentService/ListUserCoupons": Method(_READ_OWN, _READS),
    "AssignmentService/ListAssignments": Method(_ISSUE | _AUDIT, _READS),
    "RedemptionService/ValidateCode": Method(_CHECK_OUT, _TILL, LookUp.CODE),
    "RedemptionService/QualifyCoupons": Method(_CHECK_OUT, _TILL, LookUp.CODES),
    "RedemptionService/LockCode": Method(_CHECK_OUT, _TILL, LookUp.CODE),
    "RedemptionService/ExtendLock": Method(_CHECK_OUT, _TILL),
    "RedemptionService/UnlockCode": Method(_CHECK_OUT, _TILL),
    "RedemptionService/GetLock": Method(_READ_OWN, _READS),
    "RedemptionService/ListLocks": Method(_READ_OWN, _READS),
    "RedemptionService/RedeemCode": Method(_CHECK_OUT, _TILL, LookUp.CODE),
    "RedemptionService/BatchRedeemCodes": Method(_REDEEM, _TILL, LookUp.ITEMS, large=True),
    "RedemptionService/RollbackRedemption": Method(_REDEEM, _CHANGES),
    "RedemptionService/AdjustRedemption": Method(_REDEEM, _CHANGES),
    "RedemptionService/GetRedemption": Method(_READ_OWN, _READS),
    "RedemptionService/ListRedemptions": Method(_READ_OWN, _READS),
    "RedemptionService/ListRefusals": Method(_AUDIT, _READS),
    "RedemptionService/Checkout": Method(
        _CHECK_OUT, _TILL, large=True, open_ended=True, carrier=True
    ),
    "AuditService/ListAuditEvents": Method(_AUDIT, _READS),
    "AuditService/WatchAuditEvents": Method(_AUDIT, _READS, open_ended=True),
    "AuditService/EraseUser": Method(frozenset(), _CHANGES, open_ended=True),
    "AuditService/GetErasure": Method(_AUDIT, _READS),
    "AuditService/VerifyAudit": Method(_AUDIT, _READS, open_ended=True),
    "AuditService/GetAuditProof": Method(_AUDIT, _READS),
    "AuditService/GetAuditCheckpoint": Method(_AUDIT, _READS),
}
"""The methods by `Service/Method`, in the order of the contract."""
