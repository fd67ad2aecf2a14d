"""The ledger between proto and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from coupon_service.audit.proofs import InclusionProof
from coupon_service.model import BookState, CodeState, Event, EventType
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.business import listed_business
from coupon_service.rpc.convert.fields import Fields, Page
from coupon_service.rpc.convert.values import from_timestamp, to_money, to_struct, to_timestamp
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.store.ledger_feed import Followed
from coupon_service.store.ledger_verifier import Verified
from coupon_service.store.queries.followed_events import FIRST_TIME, LedgerPosition, position_after
from coupon_service.store.queries.reads import AuditFilter
from coupon_service.v1 import audit_service_pb2 as pb

SEAL_NUMBER_MAX: Final = 2**62
"""Of a request: more than there can be."""

ABOUT_BOOKS = frozenset(
    {
        EventType.BOOK_CREATED,
        EventType.BOOK_UPDATED,
        EventType.BOOK_ACTIVATED,
        EventType.BOOK_PAUSED,
        EventType.BOOK_CLOSED,
        EventType.CODES_GENERATED,
        EventType.CODES_IMPORTED,
        EventType.CODES_DELETED,
        EventType.CODES_CHANGED,
        EventType.BOOK_RUNNING_LOW,
        EventType.BOOK_USED_UP,
        EventType.BOOK_ARCHIVED,
        EventType.BOOK_RESTORED,
    }
)
"""Events whose states are those of a book; those of the others are of a code."""


def read_list(
    request: pb.ListAuditEventsRequest, rpc: RequestContext, tokens: PageTokens
) -> tuple[AuditFilter, Page]:
    """Which events, and which page of them. Raises PermissionDenied."""
    fields = Fields()
    wanted = replace(
        _filter(fields, request, rpc), end_time=fields.optional_time(request, "end_time")
    )
    page = fields.page(request, tokens)
    fields.check()
    return wanted, page


def oldest_first_message(
    request: pb.ListAuditEventsRequest, followed: Followed, tokens: PageTokens
) -> pb.ListAuditEventsResponse:
    """A page in the order of the ledger, with as many events as an answer can hold."""
    page = followed.page
    end = None if page.is_last else token_position(page.end)
    messages, end = page_within_bounds(page.events, event_message, end, token_position_after)
    response = pb.ListAuditEventsResponse(
        events=messages, next_page_token=tokens.token(request, end)
    )
    if end is None and followed.complete_time is not None:
        response.complete_time.FromDatetime(followed.complete_time)
    return response


@dataclass(frozen=True, slots=True)
class Watch:
    """What is followed, and from where on: `after`, or else now, or the `start_time` of `wanted`.

    `query`: what the tokens of its messages are for.
    """

    wanted: AuditFilter
    after: LedgerPosition | None
    from_now: bool
    stop_at_end: bool
    query: pb.WatchAuditEventsRequest


def read_watch(
    request: pb.WatchAuditEventsRequest, rpc: RequestContext, tokens: PageTokens
) -> Watch:
    """What to follow. Raises PermissionDenied."""
    fields = Fields()
    wanted = _filter(fields, request, rpc)
    query = pb.WatchAuditEventsRequest()
    query.CopyFrom(request)
    query.business_id = wanted.business_id  # of the token: another one's is for other events
    query.ClearField("stop_at_end")
    if query.from_now:
        query.ClearField("start")
    position = None
    try:
        position = tokens.position(query)
    except ValueError as error:
        fields.refuse("resume_token", str(error))
    fields.check()
    after = None if position is None else ledger_position(position)
    return Watch(wanted, after, request.from_now, request.stop_at_end, query)


def _filter(fields: Fields, request: Any, rpc: RequestContext) -> AuditFilter:
    """What both have in common."""
    types: list[EventType] = []
    for index, number in enumerate(request.types):
        chosen = fields.choice(f"types[{index}]", number, EventType, None)
        if chosen is None and not number:
            fields.refuse(f"types[{index}]", "expected a type")
        elif chosen is not None and chosen not in types:
            types.append(chosen)
    return AuditFilter(
        business_id=listed_business(fields, request.business_id, rpc),
        book_id=fields.optional_uuid("book_id", request.book_id),
        code=fields.code("code", request.code) if request.code else "",
        user_id=fields.identifier("user_id", request.user_id, optional=True, erased=True),
        order_id=fields.identifier("order_id", request.order_id, optional=True, erased=True),
        types=tuple(types),
        start_time=fields.optional_time(request, "start_time"),
    )


def token_position(position: LedgerPosition) -> Sequence[object]:
    """A position as a token has it."""
    return position.sequence, position.time.isoformat(), str(position.event_id)


def token_position_after(event: Event) -> Sequence[object]:
    """The position after this event, as a token has it."""
    return token_position(position_after(event))


def token_position_after_message(event: pb.AuditEvent) -> Sequence[object]:
    """As token_position_after, of an event as a client sees it."""
    time = FIRST_TIME if event.sequence else from_timestamp(event.event_time)
    return token_position(LedgerPosition(event.sequence, time, UUID(event.event_id)))


def ledger_position(position: Sequence[Any]) -> LedgerPosition:
    """The position that a token has."""
    sequence, time, event_id = position
    return LedgerPosition(sequence, datetime.fromisoformat(time), UUID(event_id))


def _check_shard(fields: Fields, request: Any, rpc: RequestContext, shard: str) -> None:
    """That a request may be asked of this shard, which it was brought to. Raises
    PermissionDenied."""
    listed_business(fields, request.business_id, rpc)
    if request.shard and request.shard != shard:
        fields.refuse(
            "shard",
            "expected a shard, such as coupon_00, and no business_id of another"
            if shard
            else "expected none: there is only one",
        )


def read_verify(
    request: pb.VerifyAuditRequest, rpc: RequestContext, shard: str
) -> tuple[datetime | None, datetime | None]:
    """When the seals were made that are to be compared. Raises PermissionDenied."""
    fields = Fields()
    _check_shard(fields, request, rpc, shard)
    start_time = fields.optional_time(request, "start_time")
    end_time = fields.optional_time(request, "end_time")
    fields.check()
    return start_time, end_time


def read_proof(request: pb.GetAuditProofRequest) -> tuple[UUID, int]:
    """The event, and the number of the checkpoint; 0 for that of its own seal."""
    fields = Fields()
    event_id = fields.uuid("event_id", request.event_id)
    number = fields.whole("checkpoint_number", request.checkpoint_number, 0, SEAL_NUMBER_MAX)
    fields.check()
    return event_id, number


def read_checkpoint(request: pb.GetAuditCheckpointRequest, rpc: RequestContext, shard: str) -> int:
    """The number of the seal; 0 for the newest. Raises PermissionDenied."""
    fields = Fields()
    _check_shard(fields, request, rpc, shard)
    number = fields.whole("number", request.number, 0, SEAL_NUMBER_MAX)
    fields.check()
    return number


def verified_message(verified: Verified, shard: str) -> pb.VerifyAuditResponse:
    """How far the ledger of a shard has been compared, as a client sees it."""
    return pb.VerifyAuditResponse(
        seal_count=verified.seals,
        row_count=verified.rows,
        erased_row_count=verified.erased_rows,
        archived_row_count=verified.archived_rows,
        sequence=verified.sequence,
        sealed_sequence=verified.last_sequence,
        findings=[
            pb.AuditFinding(
                fault=pb.AuditFault.ValueType(it.finding.fault),
                sequence=it.finding.sequence,
                event_id=str(it.event_id or ""),
                seal_number=it.finding.seal_number,
                shard=shard,
            )
            for it in verified.findings
        ],
        done=verified.is_done,
        unsealed_row_count=verified.unsealed_rows,
        unnumbered_row_count=verified.unnumbered_rows or 0,
        shard=shard,
    )


def proof_message(proof: InclusionProof) -> pb.GetAuditProofResponse:
    """A proof as a client sees it, without its checkpoint."""
    return pb.GetAuditProofResponse(
        facts=proof.facts,
        parts=[
            pb.AuditProofPart(commitment=it.commitment, salt=it.salt or b"", values=it.part or b"")
            for it in proof.parts
        ],
        index=proof.index,
        path=proof.path,
        chain_before=proof.chain_before,
        seals=[
            pb.AuditSeal(
                number=it.number,
                first_sequence=it.first_sequence,
                last_sequence=it.last_sequence,
                row_count=it.row_count,
                root=it.root,
                leaves_hash=it.leaves_hash,
                seal_time=to_timestamp(it.seal_time),
                version=it.version,
            )
            for it in (proof.seal, *proof.later_seals)
        ],
    )


def event_message(event: Event) -> pb.AuditEvent:
    """A row of the ledger as a client sees it."""
    return pb.AuditEvent(
        event_id=str(event.event_id),
        type=pb.AuditEventType.ValueType(event.type),
        event_time=to_timestamp(event.event_time),
        book_id="" if event.type is EventType.USER_ERASED else str(event.book_id),
        code=event.code or "",
        user_id=event.user_id or "",
        order_id=event.order_id or "",
        caller=event.caller,
        peer=event.peer,
        user_agent=event.user_agent,
        request_id=event.request_id,
        state_before=_state_name(event, event.state_before),
        state_after=_state_name(event, event.state_after),
        order_amount=to_money(event.order_amount_minor, event.currency_code),
        discount=to_money(event.discount_minor, event.currency_code),
        redemption_id=str(event.redemption_id or ""),
        lock_id=str(event.lock_id or ""),
        fence=event.fence or 0,
        code_redemption_count=event.code_redemptions or 0,
        expire_time=to_timestamp(event.expire_time) if event.expire_time else None,
        metadata=to_struct(event.metadata),
        other_user_id=event.other_user_id or "",
        sequence=event.sequence or 0,
    )


def _state_name(event: Event, state: int | None) -> str:
    if state is None:
        return ""
    return (BookState if event.type in ABOUT_BOOKS else CodeState)(state).name
