"""What a code says for itself."""

from __future__ import annotations

from datetime import datetime

from coupon_service.model.books import Discount
from coupon_service.model.values import value


@value
class CodeTerms:
    """A row of coupon_code_terms: what holds for one code in place of what its book says, or beside
    it. What is 0 or None is the book's.

    `start_time` and `end_time` hold beside the book's. `metadata` is JSON text.
    """

    max_redemptions: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    discount: Discount | None = None
    metadata: str | None = None


NO_TERMS = CodeTerms()
