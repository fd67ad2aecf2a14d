"""The streams of a worker that are open: how many there may be, and when they end.

gRPC tells a handler nothing of GOAWAY. So each stream ends by itself before its connection is too
old, and all of them when the worker stops.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from coupon_service.errors import Overloaded, StreamEnded

AGES: Final = (0.6, 0.9)
"""Between which parts of the greatest age streams end, so that not all do at the same time."""


class OpenStreams:
    """At most `streams_max`, and `of_one_max` of whoever opens them, called `what` in errors.

    Each is told to end before it is `age_max_ms` old. `changed` is called with how many there are.
    """

    def __init__(
        self,
        streams_max: int,
        of_one_max: int,
        age_max_ms: int,
        what: str,
        changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._max = streams_max
        self._of_one_max = of_one_max
        self._age_max_s = age_max_ms / 1000
        self._what = what
        self._changed = changed
        self._ends: dict[object, Callable[[], None]] = {}
        self._of_one: Counter[str] = Counter()
        self._ending = False

    def __len__(self) -> int:
        return len(self._ends)

    @contextmanager
    def opened(self, whose: str, end: Callable[[], None]) -> Generator[None]:
        """A stream is open meanwhile; `end` is called when it is to end.

        Raises StreamEnded when the worker stops, Overloaded when there are too many.
        """
        if self._ending:
            raise StreamEnded
        if len(self._ends) >= self._max:
            raise Overloaded("The service has too many streams.")
        if self._of_one[whose] >= self._of_one_max:
            raise Overloaded(f"The {self._what} has too many streams.")
        age_s = self._age_max_s * random.uniform(*AGES)  # noqa: S311 - a spread
        aged = asyncio.get_running_loop().call_later(age_s, end)
        stream = object()
        self._ends[stream] = end
        self._of_one[whose] += 1
        self._changed(len(self._ends))
        try:
            yield
        finally:
            aged.cancel()
            del self._ends[stream]
            self._of_one[whose] -= 1
            if not self._of_one[whose]:
                del self._of_one[whose]
            self._changed(len(self._ends))

    def end(self, spread_s: float) -> None:
        """Takes no more streams, and ends each of these within so many seconds.

        By then its client should know where else to go on.
        """
        self._ending = True
        for end in self._ends.values():
            after_s = spread_s * random.uniform(0.1, 1)  # noqa: S311 - a spread
            asyncio.get_running_loop().call_later(after_s, end)
