"""Where mutants let others in between two steps that belong together."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import Final

BETWEEN_S: Final = 0.2
"""How long others are let in who do not wait."""
ALONE_S: Final = 3.0
"""How long whoever comes first waits for the second."""


class Meeting:
    """Two who come at the same time go on when both are here, whatever server they come from.

    So both decide on what was there before either of them, however busy the machine is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: threading.Event | None = None

    async def with_another(self) -> None:
        """Waits for another one."""
        with self._lock:
            other, mine = self._waiting, threading.Event()
            self._waiting = None if other is not None else mine
        if other is not None:
            other.set()
            return
        until_s = monotonic() + ALONE_S
        while not mine.is_set() and monotonic() < until_s:
            await asyncio.sleep(0.002)
        with self._lock:
            if self._waiting is mine:
                self._waiting = None
