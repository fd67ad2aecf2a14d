"""Coupon books between proto and model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from google.protobuf.message import Message

from coupon_service.errors import PermissionDenied
from coupon_service.model import (
    AssignmentPolicy,
    Attempt,
    Benefit,
    Book,
    BookLimits,
    BookState,
    BookStats,
    Call,
    EventType,
    LockPolicy,
    OrderPolicy,
    earlier_attempts,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import BUCKETS, DEFAULT_ALPHABET, CodeFormat
from coupon_service.model.normalization import CODE_LENGTH_MAX
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.discounts import discount_message, read_discount
from coupon_service.rpc.convert.fields import AMOUNT_MAX_MINOR, TTL_MAX_MS, Fields, Page
from coupon_service.rpc.convert.schedules import (
    period_limits_message,
    read_period_limits,
    read_schedule,
    schedule_message,
)
from coupon_service.rpc.convert.values import INT64_MAX, to_money, to_struct, to_timestamp
from coupon_service.rpc.paging import PageTokens
from coupon_service.rules import book_updates
from coupon_service.v1 import coupon_book_service_pb2 as pb

STORED_STATES: Final = (BookState.DRAFT, BookState.ACTIVE, BookState.PAUSED, BookState.CLOSED)

TransitionRequest = (
    pb.ActivateCouponBookRequest | pb.PauseCouponBookRequest | pb.CloseCouponBookRequest
)

COUNT_MAX: Final = 10**9
BUDGET_MAX_MINOR: Final = 10**18
VALIDITY_MAX_MS: Final = 3_653 * 86_400_000  # ten years
AFFIX_MAX_CHARACTERS: Final = 16
NO_VERSION: Final = -1

LATER_FIELDS: Final = (
    "min_code_length",
    "order_policy",
    "exclusive_group",
    "period_limits",
    "schedule",
    "return_to_pool",
)
"""Fields of CouponBook that came after the first fingerprints of CreateCouponBook were recorded.
Those name all the others: naming these as well would make a repeat from before another call."""

NAMES_IN_BOOK: Final = {
    "default_lock_ttl": "default_lock_ttl_ms",
    "max_lock_ttl": "max_lock_ttl_ms",
    "assigned_code_validity": "assigned_code_validity_s",
}
"""Fields of CouponBook that Book calls otherwise."""

# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BookChange:
    """What is to be done to a book. `etag_version`: the version it has to have, None = any."""

    book_id: UUID
    etag_version: int | None
    call: Call
    fingerprint: int
    changes: Mapping[str, Any]


def read_create(
    request: pb.CreateCouponBookRequest, rpc: RequestContext, now: datetime
) -> tuple[Book, Call, int, Sequence[Attempt]]:
    """The new book, whose id is that of its event; the call and its fingerprint; its earlier
    attempts."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    message, inside = request.coupon_book, fields.within("coupon_book")
    business_id = inside.identifier("business_id", message.business_id)
    values = {path: read() for path, read in _readers(inside, message).items()}
    named = ("business_id", *(path for path in values if path not in LATER_FIELDS))

    def attempt(caller: str, business_id: str) -> Attempt:
        ids = caller, call.request_id, business_id
        bucket = fingerprint(*ids) % BUCKETS
        asked = pb.CouponBook()
        asked.CopyFrom(message)
        asked.business_id = business_id
        parameters = _fingerprint(asked, named, also=LATER_FIELDS)
        return event_id(bucket, EventType.BOOK_CREATED, *ids), parameters

    book_id, parameters = attempt(call.caller, business_id)
    book = Book(
        book_id=book_id,
        business_id=business_id,
        create_time=now,
        update_time=now,
        **_named(values),
    )
    for violation in book_updates.violations(book):
        fields.refuse(violation.field, violation.description)
    fields.check()
    ids, sent = (call.caller, business_id), (call.caller, message.business_id)
    return book, call, parameters, earlier_attempts(attempt, ids, sent)


def read_update(request: pb.UpdateCouponBookRequest, rpc: RequestContext) -> BookChange:
    """The new values of the fields that the mask names."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    message, inside = request.coupon_book, fields.within("coupon_book")
    book_id = inside.uuid("book_id", message.book_id)
    readers = _readers(inside, message)
    changes: dict[str, Any] = {}
    if not request.update_mask.paths:
        fields.refuse("update_mask", "expected the names of the fields to change")
    for index, path in enumerate(request.update_mask.paths):
        if path in readers:
            changes[path] = readers[path]()
        else:
            expected = f"expected one of {', '.join(readers)}"
            fields.refuse(f"update_mask.paths[{index}]", expected)
    fields.check()
    if "code_format" in changes and not message.code_format.alphabet:
        changes["code_format"] = replace(changes["code_format"], alphabet="")  # the book's default
    return BookChange(
        book_id,
        _version(message.etag),
        call,
        _fingerprint(message, ("etag", *sorted(changes))),
        _named(changes),
    )


def read_transition(request: TransitionRequest, rpc: RequestContext) -> BookChange:
    """Which book is to go on to its next state."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    book_id = fields.uuid("book_id", request.book_id)
    fields.check()
    return BookChange(book_id, _version(request.etag), call, fingerprint(request.etag), {})


def read_list(
    request: pb.ListCouponBooksRequest, rpc: RequestContext, tokens: PageTokens
) -> tuple[str, BookState | None, Page]:
    """Whose books in which state, and which page of them. Raises PermissionDenied."""
    fields = Fields()
    business_id = fields.identifier("business_id", request.business_id, optional=True)
    state = fields.choice("state", request.state, STORED_STATES, None)
    page = fields.page(request, tokens)
    fields.check()
    if rpc.business_id and business_id not in ("", rpc.business_id):
        raise PermissionDenied("The caller may only list coupon books of its own business.")
    return business_id or rpc.business_id, state, page


def read_book_id(request: pb.GetCouponBookRequest | pb.GetCouponBookStatsRequest) -> UUID:
    """Which book."""
    fields = Fields()
    book_id = fields.uuid("book_id", request.book_id)
    fields.check()
    return book_id


def read_code_format(fields: Fields, message: pb.CodeFormat) -> CodeFormat:
    """The format, with the defaults of what is not set."""
    code_format = CodeFormat(
        length=message.length or 12,
        alphabet=message.alphabet or DEFAULT_ALPHABET,
        prefix=message.prefix,
        suffix=message.suffix,
        separator=message.separator,
        group_size=message.group_size,
        check_character=message.check_character,
    )
    for field, text in (("prefix", message.prefix), ("suffix", message.suffix)):
        if len(text) > AFFIX_MAX_CHARACTERS:
            fields.refuse(field, f"expected at most {AFFIX_MAX_CHARACTERS} characters")
    for violation in code_format.violations():
        fields.refuse(violation.field, violation.description)
    return code_format


def _readers(fields: Fields, book: pb.CouponBook) -> dict[str, Callable[[], Any]]:
    """How each field that a client sets is read, by its name in CouponBook."""
    return {
        "name": lambda: fields.text("name", book.name, 200),
        "description": lambda: fields.lines("description", book.description, 2_000),
        "discount": lambda: read_discount(fields, book.discount),
        "currency_code": lambda: _currency_code(fields, book),
        "min_order_amount_minor": lambda: fields.whole(
            "min_order_amount_minor", book.min_order_amount_minor, 0, AMOUNT_MAX_MINOR
        ),
        "limits": lambda: _limits(fields, book),
        "assignment_policy": lambda: fields.choice(
            "assignment_policy",
            book.assignment_policy,
            AssignmentPolicy,
            AssignmentPolicy.REQUIRED,
        ),
        "lock_policy": lambda: fields.choice(
            "lock_policy", book.lock_policy, LockPolicy, LockPolicy.OPTIONAL
        ),
        "default_lock_ttl": lambda: _lock_ttl_ms(fields, book, "default_lock_ttl"),
        "max_lock_ttl": lambda: _lock_ttl_ms(fields, book, "max_lock_ttl"),
        "start_time": lambda: _time(fields, book, "start_time"),
        "end_time": lambda: _time(fields, book, "end_time"),
        "assigned_code_validity": lambda: _validity_s(fields, book),
        "code_format": lambda: read_code_format(fields.within("code_format"), book.code_format),
        "metadata": lambda: fields.metadata(book.metadata),
        "low_threshold": lambda: fields.whole("low_threshold", book.low_threshold, 0, 10**12),
        "min_code_length": lambda: fields.whole(
            "min_code_length", book.min_code_length, 0, CODE_LENGTH_MAX
        ),
        "order_policy": lambda: fields.choice(
            "order_policy", book.order_policy, OrderPolicy, OrderPolicy.INDEPENDENT
        ),
        "exclusive_group": lambda: fields.identifier(
            "exclusive_group", book.exclusive_group, optional=True
        ),
        "period_limits": lambda: (
            read_period_limits(fields.within("period_limits"), book.period_limits)
            if book.HasField("period_limits")
            else None
        ),
        "schedule": lambda: (
            read_schedule(fields.within("schedule"), book.schedule)
            if book.HasField("schedule")
            else None
        ),
        "return_to_pool": lambda: book.return_to_pool,
    }


def _limits(fields: Fields, book: pb.CouponBook) -> BookLimits:
    message, inside = book.limits, fields.within("limits")

    def limit(field: str) -> int:
        return inside.whole(field, getattr(message, field), 0, COUNT_MAX)

    single_use = not message.HasField("max_redemptions_per_code")
    return BookLimits(
        max_redemptions=inside.whole("max_redemptions", message.max_redemptions, 0, 10**12),
        max_redemptions_per_code=1 if single_use else limit("max_redemptions_per_code"),
        max_redemptions_per_user_per_code=limit("max_redemptions_per_user_per_code"),
        max_redemptions_per_user=limit("max_redemptions_per_user"),
        max_assignments_per_user=limit("max_assignments_per_user"),
        budget_minor=inside.whole(
            "max_discount_minor", message.max_discount_minor, 0, BUDGET_MAX_MINOR
        ),
        max_redemptions_per_order=limit("max_redemptions_per_order"),
    )


def _currency_code(fields: Fields, book: pb.CouponBook) -> str:
    # Whether it can be empty is for the rules of the whole book to say.
    code = book.currency_code
    return fields.currency_code("currency_code", code) if code else ""


def _lock_ttl_ms(
    fields: Fields, book: pb.CouponBook, field: Literal["default_lock_ttl", "max_lock_ttl"]
) -> int:
    if not book.HasField(field):
        return 0
    return fields.milliseconds(field, getattr(book, field), 1_000, TTL_MAX_MS)


def _time(
    fields: Fields, book: pb.CouponBook, field: Literal["start_time", "end_time"]
) -> datetime | None:
    return fields.time(field, getattr(book, field)) if book.HasField(field) else None


def _validity_s(fields: Fields, book: pb.CouponBook) -> int:
    field = "assigned_code_validity"
    if not book.HasField(field):
        return 0
    duration_ms = fields.milliseconds(field, book.assigned_code_validity, 1_000, VALIDITY_MAX_MS)
    if duration_ms % 1_000:
        fields.refuse(field, "expected whole seconds")
    return duration_ms // 1_000


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their names in Book, instead of those in CouponBook."""
    return {NAMES_IN_BOOK.get(path, path): value for path, value in values.items()}


def _fingerprint(message: Message, names: Collection[str], also: Collection[str] = ()) -> int:
    """Of these fields of the message, and of those that count only where they are set."""
    asked = type(message)()
    asked.CopyFrom(message)
    for field in asked.DESCRIPTOR.fields:
        if field.name not in names and field.name not in also:
            asked.ClearField(field.name)
    return fingerprint(*names, asked.SerializeToString(deterministic=True).hex())


# --- answers ------------------------------------------------------------------------------------


def etag(book: Book) -> str:
    """What distinguishes this version of the book from others."""
    return f"v{book.version}"


def _version(tag: str) -> int | None:
    """The version an etag stands for; None for an empty one, no book's for one that is not ours."""
    if not tag:
        return None
    version = re.fullmatch(r"v([1-9][0-9]{0,8})", tag)
    return int(version[1]) if version else NO_VERSION


def book_message(book: Book, effective_state: BookState) -> pb.CouponBook:
    """The book as a client sees it."""
    message = pb.CouponBook(
        book_id=str(book.book_id),
        business_id=book.business_id,
        name=book.name,
        description=book.description,
        state=pb.CouponBookState.ValueType(book.state),
        effective_state=pb.CouponBookState.ValueType(effective_state),
        discount=discount_message(book.discount),
        currency_code=book.currency_code,
        min_order_amount_minor=book.min_order_amount_minor,
        limits=_limits_message(book.limits),
        assignment_policy=pb.AssignmentPolicy.ValueType(book.assignment_policy),
        lock_policy=pb.LockPolicy.ValueType(book.lock_policy),
        start_time=to_timestamp(book.start_time) if book.start_time else None,
        end_time=to_timestamp(book.end_time) if book.end_time else None,
        code_format=_code_format_message(book.code_format),
        metadata=to_struct(book.metadata),
        etag=etag(book),
        create_time=to_timestamp(book.create_time),
        update_time=to_timestamp(book.update_time),
        low_threshold=book.low_threshold,
        min_code_length=book.min_code_length,
        period_limits=period_limits_message(book.period_limits) if book.period_limits else None,
        order_policy=pb.OrderPolicy.ValueType(book.order_policy),
        exclusive_group=book.exclusive_group,
        schedule=schedule_message(book.schedule) if book.schedule else None,
        return_to_pool=book.return_to_pool,
    )
    if book.default_lock_ttl_ms:
        message.default_lock_ttl.FromMilliseconds(book.default_lock_ttl_ms)
    if book.max_lock_ttl_ms:
        message.max_lock_ttl.FromMilliseconds(book.max_lock_ttl_ms)
    if book.assigned_code_validity_s:
        message.assigned_code_validity.FromSeconds(book.assigned_code_validity_s)
    return message


def stats_message(book: Book, stats: BookStats) -> pb.CouponBookStats:
    """The counts as a client sees them."""
    given_minor = None
    if book.codes_have_terms or not isinstance(book.discount, Benefit):
        given_minor = min(stats.discount_minor, INT64_MAX)
    return pb.CouponBookStats(
        book_id=str(book.book_id),
        code_count=stats.codes,
        available_count=stats.available,
        assigned_count=stats.assigned,
        redeemed_count=stats.redeemed,
        disabled_count=stats.disabled,
        assignment_count=stats.assignments,
        redemption_count=stats.redemptions,
        rollback_count=stats.rollbacks,
        discount_given=to_money(given_minor, book.currency_code),
    )


def _limits_message(limits: BookLimits) -> pb.BookLimits:
    return pb.BookLimits(
        max_redemptions=limits.max_redemptions,
        max_redemptions_per_code=limits.max_redemptions_per_code,
        max_redemptions_per_user_per_code=limits.max_redemptions_per_user_per_code,
        max_redemptions_per_user=limits.max_redemptions_per_user,
        max_assignments_per_user=limits.max_assignments_per_user,
        max_discount_minor=limits.budget_minor,
        max_redemptions_per_order=limits.max_redemptions_per_order,
    )


def _code_format_message(code_format: CodeFormat) -> pb.CodeFormat:
    return pb.CodeFormat(
        length=code_format.length,
        alphabet=code_format.alphabet,
        prefix=code_format.prefix,
        suffix=code_format.suffix,
        separator=code_format.separator,
        group_size=code_format.group_size,
        check_character=code_format.check_character,
    )
