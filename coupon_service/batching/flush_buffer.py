"""What comes one by one goes on together, a moment later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FlushBuffer(Generic[T]):
    """Collects items from the first on for a fixed time, then hands all of them to `flush`.

    No batcher: nothing is bounded or awaited and nobody is answered, so that there is no task, only
    a timer. What is done for many in turn finds its code in the processor's caches.
    """

    def __init__(self, flush: Callable[[list[T]], None], delay_ms: float) -> None:
        self._flush = flush
        self._delay_s = delay_ms / 1000
        self._items: list[T] = []

    def add(self, item: T) -> None:
        """Hands the item on, with the others that come within the delay."""
        if not self._items:
            asyncio.get_running_loop().call_later(self._delay_s, self.flush)
        self._items.append(item)

    def flush(self) -> None:
        """Hands on at once what has been collected, if anything."""
        items, self._items = self._items, []
        if items:
            self._flush(items)
