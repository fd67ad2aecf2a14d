"""Why a call was not carried out: one class for each reason of the contract.

A class has what the metadata of its reason names as attributes; what the service did not send is 0,
empty or None. The classes of reasons derive from those of statuses, which also stand for reasons
that this version does not know, and for statuses that the service did not send itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from grpc import StatusCode

from coupon_service.v1.error_reason_pb2 import ErrorReason

PREFIX: Final = "ERROR_REASON_"
UNKNOWN_OUTCOMES: Final = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.CANCELLED,  # what gRPC answers calls that reach a worker while it ends
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
    }
)
"""Statuses of calls that may have changed something. A repeat settles it."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invalid field of a request. `field` is empty when the request is bad as a whole."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What the service, or gRPC, says of a call or an operation that failed."""

    status: StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    retry_after_s: float | None = None
    violations: Sequence[Violation] = ()


class CouponError(Exception):
    """A call was not carried out, or it is not known whether it was.

    `outcome_unknown`: this or an earlier try of the call may have changed something. The same call
    with this `request_id` settles it, at any time. A DeadlineExceeded has the error of an earlier
    try as its `__cause__`, where that says why.
    """

    status = StatusCode.UNKNOWN

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)  # as pickle needs it
        self.message = problem.message
        """A description for people. Not stable."""
        self.reason = problem.reason
        """The name of the ErrorReason, such as CODE_LOCKED, or that of the status where the service
        gave none."""
        self.metadata = problem.metadata
        """The metadata of the reason."""
        self.status = problem.status
        """The gRPC status."""
        self.retry_after_s = problem.retry_after_s
        """After which time a repeat may help, where the service says so."""
        self.violations = problem.violations
        """The invalid fields."""
        self.outcome_unknown = problem.status in UNKNOWN_OUTCOMES
        self.request_id = ""
        """Of the call. Empty for calls that change nothing."""
        for key in type(self).__annotations__.keys() & problem.metadata.keys():
            with suppress(ValueError):
                setattr(self, key, _value(problem.metadata[key], getattr(self, key)))

    def __str__(self) -> str:
        bad = "".join(f"\n  {it.field or 'request'}: {it.description}" for it in self.violations)
        return f"{self.reason}: {self.message}{bad}"


def _value(text: str, default: object) -> int | str | datetime:
    """A value of the metadata: of the type of its default, or a time."""
    match default:
        case int():
            return int(text)
        case str():
            return text
        case _:
            return datetime.fromisoformat(text)


# --- statuses -----------------------------------------------------------------------------------


class NotFound(CouponError):
    """No such resource."""

    status = StatusCode.NOT_FOUND


class Refused(CouponError):
    """The rules of the book, or the state of the code, do not allow it now. Nothing was changed."""

    status = StatusCode.FAILED_PRECONDITION


class AlreadyExists(CouponError):
    """It is there already. Nothing was changed."""

    status = StatusCode.ALREADY_EXISTS


class InvalidArgument(CouponError):
    """The request is invalid: `violations` has every bad field. Nothing was changed."""

    status = StatusCode.INVALID_ARGUMENT


class Aborted(CouponError):
    """Others were faster. Nothing was changed."""

    status = StatusCode.ABORTED


class ResourceExhausted(CouponError):
    """Too much at a time: try later. Never a limit of a book. Nothing was changed."""

    status = StatusCode.RESOURCE_EXHAUSTED


class Unauthenticated(CouponError):
    """The service accepts no call without a valid token."""

    status = StatusCode.UNAUTHENTICATED


class PermissionDenied(CouponError):
    """The token does not allow the call."""

    status = StatusCode.PERMISSION_DENIED


class Unavailable(CouponError):
    """The service, or what it depends on, cannot be reached."""

    status = StatusCode.UNAVAILABLE


class DeadlineExceeded(CouponError):
    """There was no answer within the time that the call has."""

    status = StatusCode.DEADLINE_EXCEEDED


class Internal(CouponError):
    """A fault of the service, which has more about it in its log, under the `error_id`."""

    status = StatusCode.INTERNAL
    error_id: str = ""


# --- reasons: not found -------------------------------------------------------------------------


class BookNotFound(NotFound):
    """No coupon book with this id."""


class CodeNotFound(NotFound):
    """No such coupon code, or not in the given book; for an end user also one that the user cannot
    use.
    """


class AssignmentNotFound(NotFound):
    """The code is not assigned to this user or, where none is named, to anybody."""


class LockNotFound(NotFound):
    """No such lock."""


class RedemptionNotFound(NotFound):
    """No such redemption."""


class UploadNotFound(NotFound):
    """No upload or generation of the book has this request_id."""


class ErasureNotFound(NotFound):
    """No user of this name was erased."""


class EventNotFound(NotFound):
    """No event with this id."""


class SealNotFound(NotFound):
    """No seal with this number, or it is too far from that of the event."""


# --- reasons: refused ---------------------------------------------------------------------------


class BookNotActive(Refused):
    """The book is DRAFT, PAUSED or CLOSED."""

    state: str = ""


class BookNotStarted(Refused):
    """The book's validity window begins at `start_time`."""

    start_time: datetime | None = None


class BookExpired(Refused):
    """The book's validity window ended at `end_time`."""

    end_time: datetime | None = None


class CodeDisabled(Refused):
    """The code was disabled."""


class CodeExpired(Refused):
    """The code was valid, for this user or for all, until `expire_time`."""

    expire_time: datetime | None = None


class CodeNotStarted(Refused):
    """The code is valid from `start_time` on."""

    start_time: datetime | None = None


class CodeAlreadyRedeemed(Refused):
    """The code allows one redemption and has been redeemed."""


class CodeLimitExceeded(Refused):
    """The code has been redeemed as often as it allows."""

    limit: int = 0


class UserLimitExceeded(Refused):
    """The user has reached a limit of the book: `limit_name` is its field of BookLimits."""

    limit_name: str = ""
    limit: int = 0


class BookLimitExceeded(Refused):
    """The book has been redeemed as often as it allows."""

    limit: int = 0


class BudgetExceeded(Refused):
    """The redemption would take off more than is left of the budget of the book.

    The service tells end users no numbers.
    """

    limit_minor: int = 0
    left_minor: int = 0
    currency_code: str = ""


class OrderAmountRequired(Refused):
    """The rules of the book need an order amount."""


class OrderIdRequired(Refused):
    """The order policy of the book needs an order_id."""


class OrderFullyDiscounted(Refused):
    """The coupons on the order take all of its amount off: `discount_minor`."""

    discount_minor: int = 0
    currency_code: str = ""


class OrderLimitExceeded(Refused):
    """The order has as many coupons of the book as it allows."""

    limit: int = 0


class CouponsNotCombinable(Refused):
    """The order has another coupon, and one of them is EXCLUSIVE."""


class ExclusiveGroupUsed(Refused):
    """The order has another coupon of the exclusive group of the book."""

    exclusive_group: str = ""


class NoCodesAvailable(Refused):
    """The book has no code left to assign."""


class CodeNotAssignedToUser(Refused):
    """The book requires an assignment and the user has none for this code."""


class CodeLocked(Refused):
    """All remaining uses are locked for others; the first may be free after `retry_after_ms`."""

    retry_after_ms: int = 0


class LockRequired(Refused):
    """The book requires a lock before a redemption."""


class LockExpired(Refused):
    """The lock is no longer held. `state`, where it is known: EXPIRED, RELEASED or REDEEMED."""

    state: str = ""


class LockTokenMismatch(Refused):
    """The token is not one of the service, or belongs to another code or user."""


class LockLimitExceeded(Refused):
    """The user has reached the limit of live locks, or the lock that of extensions."""

    limit: int = 0


class OutsideSchedule(Refused):
    """The book is closed at this time of the week, until `next_open_time`."""

    next_open_time: datetime | None = None


class UserPeriodLimitExceeded(Refused):
    """The user has reached the limit of this `period`: DAY, WEEK or MONTH. The next one begins at
    `next_period_time`.
    """

    limit: int = 0
    period: str = ""
    next_period_time: datetime | None = None


class BookPeriodLimitExceeded(Refused):
    """The book has been redeemed as often as it allows in this `period`: DAY, WEEK or MONTH. The
    next one begins at `next_period_time`.
    """

    limit: int = 0
    period: str = ""
    next_period_time: datetime | None = None


class OrderBelowMinimum(Refused):
    """The order amount is below the book's minimum, or was not given."""

    minimum_minor: int = 0
    currency_code: str = ""


class CurrencyMismatch(Refused):
    """The order is in another currency than the book, or the coupons on it: `currency_code`."""

    currency_code: str = ""


class AlreadyRolledBack(Refused):
    """The redemption has been rolled back before."""

    redemption_id: str = ""
    rollback_time: datetime | None = None


class OrderAlreadyRedeemed(Refused):
    """The code has a live redemption for this order: `redemption_id`."""

    redemption_id: str = ""


class CodeSpaceExhausted(Refused):
    """The code format is too small for the number of codes."""

    capacity: int = 0
    existing: int = 0
    requested: int = 0
    max_codes: int = 0


class InvalidStateTransition(Refused):
    """The state of the book, code or assignment does not allow this change."""

    state: str = ""


class AssignmentNotActive(Refused):
    """The assignment was made, and is no longer active: REDEEMED or REVOKED."""

    state: str = ""


class CodeHasHistory(Refused):
    """The code was assigned, locked or redeemed before: it can be disabled, but not deleted."""


class UserErased(Refused):
    """The request is a repeat of one for a user who was erased since."""


class ErasureNotConfigured(Refused):
    """The service has no secret for pseudonyms, so that users cannot be erased."""


class UploadAmbiguous(Refused):
    """It cannot be told for sure which codes the upload has made. `callers`: who made one with this
    request_id, where there are several."""

    callers: str = ""


class ResumeTokenAhead(Refused):
    """The ledger has lost what was read up to this `sequence`: read anew from a time before."""

    sequence: int = 0


class EventNotSealed(Refused):
    """The event is not sealed yet; one from before the ledger had numbers never will be."""


class LedgerChanged(Refused):
    """The event, or its seal, is not what it was when it was sealed."""


class RefusalsNotKept(Refused):
    """Refused attempts are not kept: COUPON_REFUSALS_KEPT_DAYS is 0."""


class Archived(Refused):
    """It is in an archive of the ledger, whose file is `archive`, and nothing about it is changed.
    A repeat was carried out before."""

    archive: str = ""


# --- reasons: already exists, invalid -----------------------------------------------------------


class CodeAlreadyAssigned(AlreadyExists):
    """The code is assigned to this user already, or to as many as it has redemptions."""


class DuplicateCode(AlreadyExists):
    """The code already exists, in this or another book."""


class CodeChecksumInvalid(InvalidArgument):
    """The check character of the code does not match: it was mistyped."""


class RequestIdReused(InvalidArgument):
    """The same caller used this request_id on this resource before, with other parameters."""


class BusinessRequired(InvalidArgument):
    """The caller sees several businesses: name one with business_id, or a book with book_id."""


class SeveralBusinesses(InvalidArgument):
    """The items of an ALL_OR_NOTHING batch are codes of several businesses, which lie in shards."""


# --- reasons: try again -------------------------------------------------------------------------


class ConcurrentModification(Aborted):
    """The etag is not the current one: read again, then repeat."""


class Contention(Aborted):
    """Too many changes of the same rows at once."""


class ErasureInProgress(Aborted):
    """The user is being erased."""


class RateLimited(ResourceExhausted):
    """Too many requests, or too many unknown codes looked up."""

    retry_after_ms: int = 0


class Overloaded(ResourceExhausted):
    """The service is overloaded."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached."""


class LocksUnavailable(Unavailable):
    """Redis cannot be reached, so that locks can be neither acquired nor checked."""


class StreamEnded(Unavailable):
    """The service ended a Checkout stream. The operation was not carried out."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.outcome_unknown = False


# --- by name -------------------------------------------------------------------------------------


def _subclasses(kind: type[CouponError]) -> Iterable[type[CouponError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _reason_name(kind: type[CouponError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


BY_STATUS: Final[Mapping[StatusCode, type[CouponError]]] = {
    kind.status: kind for kind in CouponError.__subclasses__()
}
"""The general class of each status."""

BY_REASON: Final[Mapping[str, type[CouponError]]] = {
    name: kind
    for kind in _subclasses(CouponError)
    if PREFIX + (name := _reason_name(kind)) in ErrorReason.keys()  # noqa: SIM118 - no mapping
}
"""The class of each reason, by its name in the contract."""


def error_of(problem: Problem) -> CouponError:
    """The exception of a problem: of its reason, of its status, or a CouponError."""
    kind = BY_REASON.get(problem.reason) or BY_STATUS.get(problem.status) or CouponError
    return kind(problem)
