"""What is in archives is neither changed nor done again."""

from __future__ import annotations

from coupon_service.errors import Archived
from coupon_service.model import Adjust, Command, Event, Rollback, State


def archived_attempt(command: Command, state: State) -> Archived | None:
    """The refusal of a repeat whose first call is in an archive."""
    if not state.archived:  # nearly always
        return None
    for attempt in (command.event_id, *(earlier for earlier, _ in command.earlier)):
        if (file_name := state.archived.get(attempt)) is not None:
            return Archived(archive=file_name)
    return None


def archived_redemption(command: Command, state: State) -> Archived | None:
    """The refusal of a change of a redemption that is in an archive, or on its way there."""
    if not (state.archives and isinstance(command, (Rollback, Adjust))):
        return None
    file_name = _archive_of(command.redemption, state)
    return None if file_name is None else Archived(archive=file_name)


def _archive_of(event: Event, state: State) -> str | None:
    number = event.sequence or 0  # of an event without one: of before all archives
    of_book = (it for it in state.archives if it.book_id == event.book_id)
    in_range = (it for it in of_book if it.first_sequence <= number <= it.last_sequence)
    return next((it.file_name for it in in_range), None)
