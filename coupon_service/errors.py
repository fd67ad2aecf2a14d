"""Errors of the service: one class for each reason.

An error carries details for programs in ``metadata``. ``rpc/status.py`` holds the one table that
maps classes to gRPC statuses, and the ``ErrorReason`` enum of the contract names the same reasons.
The docstring of a class says when it is raised, and is its message where none is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Background:
    """What is known of a refusal beside what its caller is told: the book of the code, its
    business, and the reasons that held as well. It is for whoever looks into it later.
    """

    book_id: UUID
    business_id: str
    untold: tuple[CouponServiceError, ...] = ()


class CouponServiceError(Exception):
    """The request could not be carried out."""

    background: Background | None = None
    """Of the refusal of an attempt on a code that there is. Never part of an answer."""

    def __init__(self, message: str = "", /, **metadata: object) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}

    @property
    def message(self) -> str:
        """A description for people."""
        return str(self.args[0])


@cache
def reason_name(kind: type[CouponServiceError]) -> str:
    """The name of a class in ErrorReason: CODE_LOCKED for CodeLocked."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


@cache
def error_class(name: str) -> type[CouponServiceError]:
    """The class of a reason, by its name in ErrorReason. Raises KeyError."""
    found, classes = {reason_name(CouponServiceError): CouponServiceError}, [CouponServiceError]
    while classes:
        derived = classes.pop().__subclasses__()
        classes += derived
        found |= {reason_name(it): it for it in derived}
    return found[name]


# --- not found ----------------------------------------------------------------------------------


class BookNotFound(CouponServiceError):
    """No coupon book with this id."""


class CodeNotFound(CouponServiceError):
    """No such coupon code."""


class AssignmentNotFound(CouponServiceError):
    """The code has no such assignment."""


class LockNotFound(CouponServiceError):
    """No such lock."""


class ErasureNotFound(CouponServiceError):
    """No user of this name was erased."""


class RedemptionNotFound(CouponServiceError):
    """No such redemption."""


class EventNotFound(CouponServiceError):
    """No event with this id."""


class SealNotFound(CouponServiceError):
    """No seal with this number, or it is too far from that of the event."""


class UploadNotFound(CouponServiceError):
    """No upload or generation of the coupon book has this request_id."""


# --- failed precondition: the rules refuse it ---------------------------------------------------


class Refusal(CouponServiceError):
    """The rules of the book, or the state of the code, do not allow it now."""


class BookNotActive(Refusal):
    """The coupon book is not active."""


class BookNotStarted(Refusal):
    """The validity window of the coupon book has not begun."""


class BookExpired(Refusal):
    """The validity window of the coupon book has ended."""


class CodeDisabled(Refusal):
    """The code is disabled."""


class CodeExpired(Refusal):
    """The code was assigned too long ago to be still valid for this user."""


class CodeNotStarted(Refusal):
    """The code is not valid yet."""


class CodeAlreadyRedeemed(Refusal):
    """The code allows one redemption and has been redeemed."""


class CodeLimitExceeded(Refusal):
    """The code has been redeemed as often as it allows."""


class UserLimitExceeded(Refusal):
    """This user has reached a limit of the coupon book."""


class BookLimitExceeded(Refusal):
    """The coupon book has been redeemed as often as it allows."""


class BudgetExceeded(Refusal):
    """The redemption would take off more than is left of the budget of the coupon book."""


class OrderAmountRequired(Refusal):
    """The rules of the coupon book need an order amount."""


class OrderIdRequired(Refusal):
    """The order policy of the coupon book needs an order_id."""


class OrderFullyDiscounted(Refusal):
    """The coupons on the order take all of its amount off already."""


class OrderLimitExceeded(Refusal):
    """The order has as many coupons of this book as the book allows."""


class CouponsNotCombinable(Refusal):
    """The order has another coupon, and one of them goes with no other."""


class ExclusiveGroupUsed(Refusal):
    """The order has another coupon of the exclusive group of this book."""


class NoCodesAvailable(Refusal):
    """The coupon book has no code left to assign."""


class CodeNotAssignedToUser(Refusal):
    """The coupon book requires an assignment and this user has none for the code."""


class CodeLocked(Refusal):
    """Every use of the code that is left is locked."""


class LockRequired(Refusal):
    """The coupon book requires a lock before a redemption."""


class LockExpired(Refusal):
    """The lock is no longer held: it expired, was released, or has been redeemed."""


class LockTokenMismatch(Refusal):
    """The lock token is not one of this service, or belongs to another code or user."""


class LockLimitExceeded(Refusal):
    """The lock has reached its limit of extensions, or the user the limit of live locks."""


class OrderBelowMinimum(Refusal):
    """The order amount is below the minimum of the coupon book."""


class CurrencyMismatch(Refusal):
    """The order is in another currency than the coupon book."""


class OutsideSchedule(Refusal):
    """The coupon book is closed at this time of the week."""


class UserPeriodLimitExceeded(Refusal):
    """This user has reached the limit of the coupon book for this day, week or month."""


class BookPeriodLimitExceeded(Refusal):
    """The coupon book has been redeemed as often as it allows in this day, week or month."""


class AlreadyRolledBack(Refusal):
    """The redemption has been rolled back before."""


class AssignmentNotActive(Refusal):
    """The assignment was made, and is no longer active: it was used up or revoked."""


class OrderAlreadyRedeemed(Refusal):
    """The code has a live redemption for this order."""


class CodeSpaceExhausted(Refusal):
    """The code format is too small for the number of codes."""


class InvalidStateTransition(Refusal):
    """The current state does not allow the change."""


class CodeHasHistory(Refusal):
    """The code was assigned, locked or redeemed before: it can be disabled, but not deleted."""


class ResumeTokenAhead(CouponServiceError):
    """The ledger does not have what was read: it has lost its end. Read anew from a time before."""


class EventNotSealed(CouponServiceError):
    """The event is not sealed yet; one from before the ledger had numbers never will be."""


class LedgerChanged(CouponServiceError):
    """The event, or its seal, is not what it was when it was sealed."""


class UploadAmbiguous(Refusal):
    """It cannot be told for sure which codes the upload has made."""


class UserErased(Refusal):
    """A user that the earlier call was about has been erased: it is not carried out again."""


class ErasureNotConfigured(Refusal):
    """Users cannot be erased: COUPON_ERASURE_SECRET is not set."""


class RefusalsNotKept(Refusal):
    """Refused attempts are not kept. COUPON_REFUSALS_KEPT_DAYS says for how many days to."""


class Archived(Refusal):
    """It is in an archive, and no longer in the ledger. Nothing about it is changed."""


# --- already exists -----------------------------------------------------------------------------


class CodeAlreadyAssigned(CouponServiceError):
    """The code is already assigned, and allows no further assignment."""


class DuplicateCode(CouponServiceError):
    """The code already exists."""


# --- invalid argument ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field: its path in the request, and the value that was expected. The path is empty
    where the request is bad as a whole.
    """

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class InvalidArgument(CouponServiceError):
    """The request has invalid fields; ``violations`` names each of them."""

    def __init__(self, violations: tuple[FieldViolation, ...]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations


class CodeChecksumInvalid(CouponServiceError):
    """The check character of the code does not match: the code was mistyped."""


class RequestIdReused(CouponServiceError):
    """This request_id was used before with other parameters."""


class BusinessRequired(CouponServiceError):
    """Codes are unique within their business: name one with business_id, or a book with book_id."""


class SeveralBusinesses(CouponServiceError):
    """The items are codes of several businesses, and only those of one can be all or nothing."""


# --- aborted: nothing was changed, retry --------------------------------------------------------


class ConcurrentModification(CouponServiceError):
    """The resource has changed since the etag was read."""


class Contention(CouponServiceError):
    """Too many changes of the same rows at once; nothing was changed. Try again."""


class ErasureInProgress(CouponServiceError):
    """The user is being erased; nothing was changed. Try again."""


# --- resource exhausted: never a business limit -------------------------------------------------


class RateLimited(CouponServiceError):
    """Too many requests from this caller."""


class Overloaded(CouponServiceError):
    """The service is overloaded; nothing was changed. Try again."""


# --- authentication and authorization -----------------------------------------------------------


class Unauthenticated(CouponServiceError):
    """No valid token."""


class PermissionDenied(CouponServiceError):
    """The caller's roles do not allow it."""


# --- dependencies -------------------------------------------------------------------------------


class DatabaseUnavailable(CouponServiceError):
    """PostgreSQL cannot be reached. Repeat with the same request_id."""


class LocksUnavailable(CouponServiceError):
    """Redis cannot be reached, so that locks can be neither acquired nor checked."""


class DeadlineExceeded(CouponServiceError):
    """The deadline passed. Repeat with the same request_id to learn the outcome."""


# --- streams ------------------------------------------------------------------------------------


class StreamEnded(CouponServiceError):
    """The service ends this stream. What has no result was not carried out: go on with another."""
