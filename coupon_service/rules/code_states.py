"""Disable and enable codes."""

from __future__ import annotations

from dataclasses import replace

from coupon_service.errors import InvalidStateTransition
from coupon_service.model import (
    Book,
    Code,
    CodeState,
    Done,
    Event,
    EventType,
    Outcome,
    SetCodeEnabled,
)
from coupon_service.rules.derived_states import code_state
from coupon_service.rules.draft import Draft


def set_enabled(command: SetCodeEnabled, code: Code, book: Book, draft: Draft) -> Outcome:
    """Disables the code, or lets its counts say its state again."""
    disabling = command.type is EventType.CODE_DISABLED
    if disabling is (code.state is CodeState.DISABLED):
        return InvalidStateTransition(f"The code is {code.state.name}.", state=code.state.name)
    limit = book.limits.max_redemptions_per_code
    enabled = code_state(code.redemptions, code.assignments, limit)
    after = replace(code, state=CodeState.DISABLED if disabling else enabled)
    draft.put_code(after)
    event = Event(**draft.about(command, command.type, before=code, after=after))
    draft.record(event)
    return Done(event, book, after)
