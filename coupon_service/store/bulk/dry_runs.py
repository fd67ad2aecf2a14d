"""What dry runs of imports remember: the codes of their earlier chunks, which are not stored."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Final

from coupon_service.errors import Overloaded

CODES_MAX: Final = 10_000_000
"""Codes that all dry runs of a worker remember at a time, at some nine bytes each."""


class DryRun:
    """The codes that would have been made by one upload, as hashes of 64 bits.

    In 10^7 codes there are two of one hash, so that a new code counts as a duplicate, with a chance
    of 3 in 10^6.
    """

    def __init__(self, dry_runs: DryRuns) -> None:
        self._dry_runs = dry_runs
        self._hashes: defaultdict[int, array[int]] = defaultdict(partial(array, "Q"))
        self.assigned: Counter[str] = Counter()
        """Codes that users would have been given, where the book limits that."""
        self.reserved = 0

    def reserve(self, count: int) -> None:
        """Makes sure that so many more codes can be remembered. Raises Overloaded."""
        self._dry_runs.reserve(count)
        self.reserved += count

    def is_new(self, code: str) -> bool:
        """Whether this is the first time that the code comes; from now on it is not."""
        number = hash(code) & (2**64 - 1)
        part = self._hashes[number >> 48]  # sorted, and short enough to insert into
        place = bisect_left(part, number)
        if place < len(part) and part[place] == number:
            return False
        part.insert(place, number)
        return True

    def forget(self, code: str) -> None:
        """The code, which was new, would not have been made."""
        number = hash(code) & (2**64 - 1)
        part = self._hashes[number >> 48]
        del part[bisect_left(part, number)]


class DryRuns:
    """All dry runs of a worker, which share its memory."""

    def __init__(self, codes_max: int = CODES_MAX) -> None:
        self._left = codes_max

    @contextmanager
    def begin(self) -> Generator[DryRun]:
        """A dry run, for as long as its stream is open."""
        dry_run = DryRun(self)
        try:
            yield dry_run
        finally:
            self._left += dry_run.reserved

    def reserve(self, count: int) -> None:
        """Takes the memory of so many codes. Raises Overloaded."""
        if count > self._left:
            raise Overloaded("Dry runs remember too many codes: import in parts, or try later.")
        self._left -= count
