"""Erasing a user: what it holds ends by the rules, then its name goes from PostgreSQL and Redis.

In steps, each of which is committed: whoever calls again goes on where it was. First the user gets
nothing new, and what it holds is ended with the commands that anybody would use. Then nothing of
the user's changes, and its name is replaced by a pseudonym, chunk by chunk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final
from uuid import UUID

from coupon_service.batching import CommandLanes
from coupon_service.errors import (
    AssignmentNotFound,
    ErasureNotConfigured,
    ErasureNotFound,
    InvalidStateTransition,
    LockExpired,
)
from coupon_service.leases import LeaseKey, Leases
from coupon_service.locks.release import lock_end
from coupon_service.model import (
    Call,
    ChangeLock,
    CommandGroup,
    ErasureState,
    Event,
    EventType,
    LockState,
    LockView,
    Outcome,
    Revoke,
    bucket_of_user,
    done_of,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.pseudonyms import Pseudonyms
from coupon_service.rules import lock_view
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.database import Database
from coupon_service.store.erasures import (
    Erased,
    begin_erasure,
    erase_chunk,
    lock_erased,
    select_assigned,
    select_businesses,
    select_erased,
    select_recent_locks,
    set_erasure,
    unaware,
)
from coupon_service.store.events import insert_event_once, select_events_by_id
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.reads import Reads
from coupon_service.telemetry.metrics import Metrics

NO_BOOK: Final = UUID(int=0)
"""In the ledger row of an erasure, which is about no book."""

POLL_S: Final = 0.01
"""Between two looks at whether transactions have ended."""

TOLD_S: Final = 1.0
"""How often it is told that there are some that have not."""

ENDED_AT_ONCE: Final = 100
"""Assignments that are revoked together."""


@dataclass(frozen=True, slots=True)
class ErasureProgress:
    """How far it has come. `replayed`: an earlier call with the request_id was done with it."""

    erased: Erased
    replayed: bool = False


class Eraser:
    """Erases users.

    Everything here raises Contention, DatabaseUnavailable or Overloaded as Database does, and
    LocksUnavailable; what was committed by then stays, and the same call goes on from there.
    """

    def __init__(
        self,
        database: Database,
        lane: BulkLane,
        commands: CommandLanes,
        reads: Reads,
        leases: Leases,
        forget_calls: Callable[[str, Collection[str]], Awaitable[None]],
        pseudonyms: Pseudonyms,
        now: Callable[[], datetime],
        metrics: Metrics,
        log: Any,
    ) -> None:
        """`forget_calls` deletes how often a user of these businesses has called. `log`: a
        structlog logger."""
        self._database = database
        self._lane = lane
        self._commands = commands
        self._reads = reads
        self._leases = leases
        self._forget_calls = forget_calls
        self._pseudonyms = pseudonyms
        self._now = now
        self._metrics = metrics
        self._log = log

    async def get(self, user_id: str) -> Erased:
        """How far it has come with a user. Raises ErasureNotFound."""
        names = self._pseudonyms.names_of_user(user_id)
        erased = await self._database.read("erased", lambda it: select_erased(it, names))
        if erased is None:
            raise ErasureNotFound
        return erased

    async def erase(self, user_id: str, call: Call) -> AsyncGenerator[ErasureProgress]:
        """Erases the user; yields after each step. Raises ErasureNotConfigured."""
        if not self._pseudonyms:
            raise ErasureNotConfigured
        pseudonym = self._pseudonyms.of_user(user_id)
        recorded = await self._recorded(pseudonym, call)
        if recorded is not None:
            yield ErasureProgress(recorded, replayed=True)
            return
        erased = await self._begin(pseudonym)
        yield ErasureProgress(erased)
        if erased.state is ErasureState.ENDING:
            async for _ in self._until_known():
                yield ErasureProgress(erased)
            await self._end_locks(user_id, call)
            # Those under the pseudonym are of redemptions that were rolled back.
            for owner in (user_id, pseudonym):
                await self._end_assignments(owner, pseudonym, call)
            erased = await self._set(pseudonym, ErasureState.ERASING)
            yield ErasureProgress(erased)
        async for _ in self._until_known():
            yield ErasureProgress(erased)
        while erased.state is ErasureState.ERASING:
            before, erased = erased, await self._erase_chunk(user_id, pseudonym)
            if erased.rows == before.rows:
                break
            yield ErasureProgress(erased)
        await self._forget(user_id, ())
        yield ErasureProgress(await self._conclude(pseudonym, call))

    # --- in PostgreSQL --------------------------------------------------------------------------

    async def _recorded(self, pseudonym: str, call: Call) -> Erased | None:
        attempt = _attempt(pseudonym, call)

        async def read(connection: Connection) -> Erased | None:
            event = (await select_events_by_id(connection, [attempt])).get(attempt)
            erased = await select_erased(connection, [pseudonym]) if event is not None else None
            if event is None or erased is None:
                return None
            rows = json.loads(event.metadata or "{}")["rows"]
            return replace(
                erased, rows=rows, state=ErasureState.ERASED, erase_time=event.event_time
            )

        return await self._database.read("recorded_erasure", read)

    async def _begin(self, pseudonym: str) -> Erased:
        async def begin(connection: Connection) -> Erased:
            await begin_erasure(connection, pseudonym, self._now())
            return await lock_erased(connection, pseudonym)

        return await self._database.transaction("begin_erasure", begin)

    async def _set(self, pseudonym: str, state: ErasureState) -> Erased:
        """The next state, unless another call is further."""

        async def advance(connection: Connection) -> Erased:
            erased = await lock_erased(connection, pseudonym)
            if erased.state < state:
                await set_erasure(connection, pseudonym, state, {})
                erased = replace(erased, state=state)
            return erased

        return await self._database.transaction("set_erasure", advance)

    async def _until_known(self) -> AsyncGenerator[None]:
        """Ends when every transaction that changes something knows how far it has come; yields
        every second until then."""
        waiting = await self._database.read("unaware", unaware)
        told_s = monotonic()
        while waiting:
            await asyncio.sleep(POLL_S)
            among = waiting
            waiting = await self._database.read("unaware", lambda it, of=among: unaware(it, of))
            if waiting and monotonic() - told_s > TOLD_S:
                told_s = monotonic()
                self._log.warning("an erasure waits", virtual_transactions=waiting)
                yield

    async def _erase_chunk(self, user_id: str, pseudonym: str) -> Erased:
        async def erase(connection: Connection) -> Erased:
            erased = await lock_erased(connection, pseudonym)
            if erased.state is not ErasureState.ERASING:
                return erased
            rows = await erase_chunk(connection, user_id, pseudonym, self._pseudonyms)
            if not rows:
                return erased
            await set_erasure(connection, pseudonym, ErasureState.ERASING, rows)
            return await lock_erased(connection, pseudonym)

        async with self._lane.turn(""):
            return await self._lane.whole_transaction("erase_user", erase)

    async def _conclude(self, pseudonym: str, call: Call) -> Erased:
        """Says in the ledger what was erased, and that the user may come again."""

        async def conclude(connection: Connection) -> Erased:
            erased = await lock_erased(connection, pseudonym)
            now = self._now().astimezone(UTC)
            if erased.state is not ErasureState.ERASED:
                await set_erasure(connection, pseudonym, ErasureState.ERASED, {}, now)
            await insert_event_once(connection, _event(erased, call, now))
            return replace(erased, state=ErasureState.ERASED, erase_time=erased.erase_time or now)

        erased = await self._database.transaction("conclude_erasure", conclude)
        self._metrics.user_erased(erased.rows)
        self._log.info("user erased", pseudonym=pseudonym, rows=dict(erased.rows))
        return erased

    # --- what ends before -----------------------------------------------------------------------

    async def _end_locks(self, user_id: str, call: Call) -> None:
        """Ends all locks, in the ledger and in Redis, and lets Redis forget those that ended."""
        while True:
            views = await self._recent_locks(user_id)
            commands = tuple(it for it in (_end_of(view, call) for view in views) if it)
            outcomes = await self._commands.submit(CommandGroup(commands)) if commands else []
            if not any(isinstance(it, LockExpired) for it in outcomes):
                break  # else one has ended since it was read
        for outcome in outcomes:
            done_of(outcome)
        await self._forget(user_id, [LeaseKey.of(it) for it in views])

    async def _recent_locks(self, user_id: str) -> list[LockView]:
        ids = await self._database.read(
            "recent_locks", lambda it: select_recent_locks(it, user_id, self._now())
        )
        histories = await self._reads.lock_events(ids, "") if ids else []
        return [it for it in (lock_view(each, self._now()) for each in histories) if it]

    async def _forget(self, user_id: str, locks: Collection[LeaseKey]) -> None:
        """Deletes what Redis has of the user."""
        await self._leases.erase(user_id, locks)
        businesses = await self._database.read("businesses", select_businesses)
        await self._forget_calls(user_id, businesses)

    async def _end_assignments(self, user_id: str, pseudonym: str, call: Call) -> None:
        async def read(connection: Connection) -> list[tuple[str, UUID, str, datetime]]:
            return await select_assigned(connection, user_id, ENDED_AT_ONCE)

        while assigned := await self._database.read("assigned", read):
            commands = tuple(_revocation(user_id, pseudonym, *it, call) for it in assigned)
            for outcome in await self._commands.submit(CommandGroup(commands)):
                _ensure_revoked(outcome)


def _ensure_revoked(outcome: Outcome) -> None:
    """Raises why it is not revoked, unless another call has revoked it."""
    if not isinstance(outcome, AssignmentNotFound | InvalidStateTransition):
        done_of(outcome)


def _end_of(view: LockView, call: Call) -> ChangeLock | None:
    """The command that ends a lock which has no end in the ledger yet."""
    match view.state:
        case LockState.HELD:
            return lock_end(view, EventType.UNLOCKED, call)
        case LockState.EXPIRED:
            return lock_end(view, EventType.LOCK_EXPIRED, call)
        case _:
            return None


def _revocation(
    user_id: str,
    pseudonym: str,
    code: str,
    book_id: UUID,
    business_id: str,
    assign_time: datetime,
    call: Call,
) -> Revoke:
    since = assign_time.astimezone(UTC).isoformat()
    parts = call.caller, call.request_id, book_id, code, pseudonym, since
    return Revoke(
        call=replace(call, business_id=business_id),
        code=code,
        event_id=event_id(bucket_of(code), EventType.REVOKED, *parts),
        fingerprint=fingerprint(pseudonym),
        user_id=user_id,
        book_id=book_id,
    )


def _attempt(pseudonym: str, call: Call) -> UUID:
    """The id of the ledger row of an erasure."""
    parts = call.caller, call.request_id, pseudonym
    return event_id(bucket_of_user(pseudonym), EventType.USER_ERASED, *parts)


def _event(erased: Erased, call: Call, now: datetime) -> Event:
    return Event(
        event_id=_attempt(erased.pseudonym, call),
        type=EventType.USER_ERASED,
        event_time=now,
        book_id=NO_BOOK,
        caller=call.caller,
        peer=call.peer,
        user_agent=call.user_agent,
        request_id=call.request_id,
        fingerprint=fingerprint(erased.pseudonym),
        user_id=erased.pseudonym,
        metadata=json.dumps({"rows": dict(erased.rows)}),
    )
