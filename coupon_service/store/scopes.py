"""Whether codes are unique within their business, and within which: what is known of it.

It is, for the codes of new books, once `coupon-service migrate finish` has run, which is recorded
in coupon_finished_steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, LiteralString
from uuid import UUID

from coupon_service.model import Book
from coupon_service.model.pseudonyms import NO_PSEUDONYMS, Pseudonyms
from coupon_service.model.scopes import ALL_BUSINESSES, scope_of_book, scope_of_business
from coupon_service.store.pipeline import Connection

ScopedCode = tuple[str, int]
"""A code, and the scope of its business; ALL_BUSINESSES where it can have no other."""

STEP: Final = "code scopes"

# One probe of an index each, for a whole statement.
SOLE_BUSINESS: Final[LiteralString] = """
    CASE WHEN EXISTS (SELECT FROM coupon_finished_steps WHERE step = 'code scopes') THEN (
        SELECT CASE WHEN min(any_of.business_id) = max(any_of.business_id)
            THEN min(any_of.business_id) ELSE '' END
        FROM coupon_books AS any_of) END"""
"""NULL while codes are unique over all businesses; then the only business there is, empty when
there are several."""

SELECT_SOLE_BUSINESS: Final[LiteralString] = f"SELECT {SOLE_BUSINESS}"


@dataclass(frozen=True, slots=True)
class Scoping:
    """Whose codes are meant by whom. `finished`: new books have codes that are unique within their
    business. `sole_business`: the only one, empty when there are several.
    """

    finished: bool = False
    sole_business: str = ""

    @classmethod
    def of(cls, sole_business: str | None) -> Scoping:
        """What SOLE_BUSINESS says."""
        return cls(sole_business is not None, sole_business or "")

    @property
    def several_businesses(self) -> bool:
        """Whether who names none has to."""
        return self.finished and not self.sole_business

    def scope_of(self, book_id: UUID | None, business_id: str) -> int:
        """The scope of a code of this book, or else of this business; with neither of the only
        one."""
        if book_id is not None:
            return scope_of_book(book_id)
        business_id = business_id or self.sole_business
        return scope_of_business(business_id) if self.finished and business_id else ALL_BUSINESSES


@dataclass(slots=True)
class LoadMemory:
    """What is remembered from load to load.

    `formats`: active books, whose code format never changes. `scoping`, and whether anybody was
    erased: as it was last; each load finds out whether it still is. `pseudonyms`: what finds those
    of erased users. `later_scopes`: of CLOSED books whose codes were unique over all businesses,
    the scope of their business: in that one later books have codes of theirs.
    """

    pseudonyms: Pseudonyms = NO_PSEUDONYMS
    formats: dict[UUID, Book] = field(default_factory=dict[UUID, Book])
    scoping: Scoping = Scoping()
    later_scopes: dict[UUID, int] = field(default_factory=dict[UUID, int])
    anybody_erased: bool = False


IS_FINISHED: Final = "SELECT EXISTS (SELECT FROM coupon_finished_steps WHERE step = %s)"


async def is_finished(connection: Connection) -> bool:
    """Whether new books have codes that are unique within their business."""
    cursor = await connection.execute(IS_FINISHED, [STEP])
    return await cursor.fetchone() == (True,)
