"""How much a book has left, and what the ledger is told of it."""

from __future__ import annotations

from coupon_service.model import BookLimits, EventType, StockLevel


def stock_left(limits: BookLimits, available: int, redemptions: int) -> int:
    """How often a code of the book can still be given out.

    `available`: its codes in that state; `redemptions`: all of the book, where it limits them.
    """
    if not limits.max_redemptions:
        return available
    redemptions_left = limits.max_redemptions - redemptions
    return min(available, redemptions_left) if limits.single_use else redemptions_left


def stock_level(left: int, threshold: int) -> StockLevel:
    """The level of so many left; `threshold` is the most that is LOW."""
    if left <= 0:
        return StockLevel.USED_UP
    return StockLevel.LOW if left <= threshold else StockLevel.ENOUGH


def crossed(before: StockLevel, after: StockLevel) -> tuple[EventType, ...]:
    """What a book whose level has changed came to, in order; going up is not worth an event."""
    events = {
        StockLevel.LOW: EventType.BOOK_RUNNING_LOW,
        StockLevel.USED_UP: EventType.BOOK_USED_UP,
    }
    return tuple(event for level, event in events.items() if before < level <= after)
