"""Locks in PostgreSQL: what the ledger says of them, and what would be or is written to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from coupon_service.batching import CommandLanes, MicroBatcher
from coupon_service.errors import LockNotFound
from coupon_service.leases import IndexedLock
from coupon_service.locks.token import LockTokens
from coupon_service.model import (
    Command,
    CommandGroup,
    Done,
    Event,
    LockState,
    LockView,
    Outcome,
    State,
    done_of,
)
from coupon_service.rules import decide, lock_view
from coupon_service.store.commands.executor import Executor, Leased
from coupon_service.store.queries.reads import Reads


@dataclass(frozen=True, slots=True)
class LockGrant:
    """What the holder of a lock is answered. `replayed`: it had been granted before."""

    lock: LockView
    token: str
    replayed: bool


class LockHistory:
    """The ledger of locks. Raises DatabaseUnavailable, and what MicroBatcher.submit raises."""

    def __init__(
        self,
        previews: MicroBatcher[CommandGroup, State],
        lanes: CommandLanes,
        executor: Executor,
        reads: Reads,
        tokens: LockTokens,
        now: Callable[[], datetime],
    ) -> None:
        """`previews` reads the states that commands would be decided on; `lanes` carries them
        out, and so does `executor`, at once."""
        self._previews = previews
        self._lanes = lanes
        self._executor = executor
        self._reads = reads
        self._tokens = tokens
        self._now = now

    # --- what would be written, and what is -----------------------------------------------------

    async def preview(self, group: CommandGroup) -> list[Outcome]:
        """What the commands would come to now, Redis left aside; nothing is written.

        They are decided on a state that others have as well. Commands that can be carried out
        without a permit have to be an atomic group, which is decided on a copy.
        """
        (outcomes,), _ = decide([group], await self._previews.submit(group), self._now())
        return outcomes

    @property
    def is_idle(self) -> bool:
        """Whether there are no other commands that a recorded one could join."""
        return self._lanes.is_idle

    async def record_leased(self, groups: Sequence[CommandGroup], leased: Leased) -> list[Outcome]:
        """Carries out groups of one command, which are decided before they have a permit and with
        it: see `Executor.execute_leased`."""
        return [outcome for (outcome,) in await self._executor.execute_leased(groups, leased)]

    async def record(self, command: Command) -> Outcome:
        """Carries out a command."""
        (outcome,) = await self._lanes.submit(CommandGroup((command,)))
        return outcome

    async def record_joined(self, commands: Sequence[Command]) -> list[Outcome]:
        """Carries out commands of several calls."""
        return await self._lanes.submit_joined(CommandGroup(tuple(commands)))

    # --- what was written -------------------------------------------------------------------------

    async def events(self, lock_id: UUID) -> tuple[Sequence[Event], LockView | None]:
        """All events of a lock, and the lock as it is now; none when it is not recorded."""
        return await self._read(lock_id, "")

    async def get(self, lock_id: UUID, business_id: str, own_user_id: str = "") -> LockView:
        """A lock as it is now, of this business and user, empty = any. Raises LockNotFound."""
        _, view = await self._read(lock_id, business_id)
        if view is None or own_user_id not in ("", view.user_id):
            raise LockNotFound
        return view

    async def held(
        self, indexed: Sequence[IndexedLock], business_id: str
    ) -> list[tuple[IndexedLock, LockView]]:
        """Those of the locks that are held, and of this business."""
        if not indexed:
            return []
        ids = [UUID(it.key.lock_id) for it in indexed]
        histories = await self._reads.lock_events(ids, business_id)
        now = self._now()
        views = [(it, lock_view(of_it, now)) for it, of_it in zip(indexed, histories, strict=True)]
        return [(it, view) for it, view in views if view and view.state is LockState.HELD]

    async def ended(self, indexed: Sequence[IndexedLock]) -> set[UUID]:
        """Which of the locks are over by the ledger, whatever Redis has kept of them."""
        ids = [UUID(it.key.lock_id) for it in indexed]
        histories = await self._reads.lock_events(ids, "") if ids else []
        now = self._now()
        views = (lock_view(it, now) for it in histories)
        return {it.lock_id for it in views if it and it.state is not LockState.HELD}

    async def own_books(self, book_ids: Iterable[str], business_id: str) -> set[str]:
        """Those of the books that are of this business, empty = any."""
        return await self._reads.known_books(book_ids, business_id)

    async def lock_of(self, done: Done) -> LockView:
        """The lock that an event is of, as it is now."""
        return done.lock or await self.get(done.event.lock_id or done.event.event_id, "")

    async def _read(
        self, lock_id: UUID, business_id: str
    ) -> tuple[Sequence[Event], LockView | None]:
        (events,) = await self._reads.lock_events([lock_id], business_id)
        return events, lock_view(events, self._now())

    # --- grants ---------------------------------------------------------------------------------

    def grant(self, lock: LockView, *, replayed: bool = False) -> LockGrant:
        """What the holder of a lock is answered."""
        return LockGrant(lock, self._tokens.sign(lock), replayed)

    async def granted(self, outcome: Outcome) -> LockGrant:
        """As `grant`, for a lock that was recorded or extended, now or before. Raises why it was
        not."""
        done = done_of(outcome)
        return self.grant(await self.lock_of(done), replayed=done.replayed)
