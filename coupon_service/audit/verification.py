"""What is wrong with a ledger: its rows compared with the seals, and the seals with their chain."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from coupon_service.audit.seals import (
    Leaf,
    Link,
    Position,
    is_intact,
    position_of,
    unpack_leaves,
)

NO_LEAF: Final = b""
"""For the leaf of a row that cannot be computed, since the key of its user is gone."""


class Fault(IntEnum):
    """What is wrong."""

    ROW_CHANGED = 1
    """The row is not the one that was sealed."""
    ROW_MISSING = 2
    """There was a row of this number."""
    ROW_INSERTED = 3
    """There was no row of this number."""
    KEY_MISSING = 4
    """The key of the row's user is gone, although the row was not erased."""
    SEAL_CHANGED = 5
    """The seal is not the one that is in the chain, or does not follow the one before."""
    SEAL_MISSING = 6
    """There was a seal of this number."""
    ERASURE_UNRECORDED = 7
    """Values of the row were erased, and no event says that its user was."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Where something is wrong. `sequence`: 0 where it is not about a row."""

    fault: Fault
    seal_number: int
    sequence: int = 0


class Verification:
    """Compares seal after seal, and says what is wrong: of the rows of a seal only the first."""

    def __init__(self, position: Position) -> None:
        """`position`: where the chain is before the first seal that is to be compared."""
        self.position = position

    def compare(
        self, link: Link, found: Iterable[Leaf], archived: Container[int] = ()
    ) -> Iterator[Finding]:
        """What is wrong with the next seal, and the rows that there are in its range.

        `found`: in the order of their numbers. `archived`: numbers whose rows are in archives,
        which prove them by themselves.
        """
        number = link.seal.number
        if number > self.position.number + 1:
            yield Finding(Fault.SEAL_MISSING, self.position.number + 1)
        elif not is_intact(self.position, link):
            yield Finding(Fault.SEAL_CHANGED, number)
        else:
            sealed = unpack_leaves(link.seal.first_sequence, link.leaves)
            for fault, sequence in differences(sealed, found):
                if fault is Fault.ROW_MISSING and sequence in archived:
                    continue
                yield Finding(fault, number, sequence)
                break
        self.position = position_of(link)

    def end(self, head: Position) -> Iterator[Finding]:
        """What is wrong with the end. `head`: where the chain was when the newest seal was made."""
        if self.position.number < head.number:
            yield Finding(Fault.SEAL_MISSING, self.position.number + 1)
        elif self.position != head:
            yield Finding(Fault.SEAL_CHANGED, self.position.number)


def differences(sealed: Sequence[Leaf], found: Iterable[Leaf]) -> Iterator[tuple[Fault, int]]:
    """How rows differ from what was sealed, by their numbers, in the order of those."""
    position = 0
    for sequence, leaf in found:
        while position < len(sealed) and sealed[position][0] < sequence:
            yield Fault.ROW_MISSING, sealed[position][0]
            position += 1
        if position == len(sealed) or sealed[position][0] > sequence:
            yield Fault.ROW_INSERTED, sequence
            continue
        if sealed[position][1] != leaf:
            yield (Fault.ROW_CHANGED if leaf != NO_LEAF else Fault.KEY_MISSING), sequence
        position += 1
    for sequence, _ in sealed[position:]:
        yield Fault.ROW_MISSING, sequence
