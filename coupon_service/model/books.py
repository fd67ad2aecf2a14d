"""Coupon books, their discounts, limits and counts."""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from uuid import UUID

from coupon_service.model.codes import CodeFormat
from coupon_service.model.enums import AssignmentPolicy, BookState, LockPolicy, OrderPolicy
from coupon_service.model.schedules import PeriodLimits, Schedule
from coupon_service.model.values import value


@value
class Money:
    """An amount in minor units."""

    amount_minor: int
    currency_code: str


@value
class PercentOff:
    """A share of the order amount, in basis points (1/100 %), with an optional cap (0 = none)."""

    basis_points: int
    max_discount_minor: int


@value
class AmountOff:
    """A fixed amount, capped at the order amount."""

    amount_minor: int


@value
class Benefit:
    """A benefit that the caller applies, such as a gift: no amount is computed."""

    description: str


@value
class Tier:
    """What orders from this amount on get."""

    from_amount_minor: int
    discount: PercentOff | AmountOff


@value
class TieredDiscount:
    """A discount by order amount: tiers with growing amounts, at least one."""

    tiers: tuple[Tier, ...]

    @property
    def least_amount_minor(self) -> int:
        """The order amount below which there is no discount."""
        return self.tiers[0].from_amount_minor

    def for_order(self, amount_minor: int) -> PercentOff | AmountOff | None:
        """The discount of the highest tier that an order of this amount reaches."""
        reached = (it for it in reversed(self.tiers) if amount_minor >= it.from_amount_minor)
        tier = next(reached, None)
        return tier.discount if tier is not None else None


Discount = PercentOff | AmountOff | Benefit | TieredDiscount


@value
class Terms:
    """What a book takes off, of which orders: what a redemption recorded the version of."""

    discount: Discount
    currency_code: str
    min_order_amount_minor: int


@value
class BookLimits:
    """How often codes can be used, and what they may take off in all. 0 = no limit."""

    max_redemptions: int = 0
    max_redemptions_per_code: int = 1
    max_redemptions_per_user_per_code: int = 0
    max_redemptions_per_user: int = 0
    max_assignments_per_user: int = 0
    budget_minor: int = 0
    max_redemptions_per_order: int = 0

    @property
    def single_use(self) -> bool:
        """Whether a code is used up by one redemption."""
        return self.max_redemptions_per_code == 1

    @property
    def any_per_user(self) -> bool:
        """Whether the book keeps a row of counts for each user."""
        return bool(self.max_redemptions_per_user or self.max_assignments_per_user)

    @property
    def any_total(self) -> bool:
        """Whether the book keeps a row of what all its redemptions come to."""
        return bool(self.max_redemptions or self.budget_minor)


@value
class Book:
    """A coupon book as stored. Lock lifetimes of 0 mean the server's.

    `locks_until`: locks that were granted before locking was switched off may be held until then;
    None where it is on, or was never on.
    `min_code_length`: of imported codes, 0 = MIN_CODE_LENGTH. `schedule`: None = always open.
    `return_to_pool`: codes of assignments that have expired are given to others.
    `codes_have_terms`: some of its codes say something for themselves; it stays so.
    `archived_until`: events of its codes up to that number are in archives; 0: only of codes that
    it has from earlier books. None: nothing is.
    """

    book_id: UUID
    business_id: str
    name: str
    discount: Discount
    create_time: datetime
    update_time: datetime
    description: str = ""
    state: BookState = BookState.DRAFT
    currency_code: str = ""
    min_order_amount_minor: int = 0
    limits: BookLimits = field(default_factory=BookLimits)
    assignment_policy: AssignmentPolicy = AssignmentPolicy.REQUIRED
    lock_policy: LockPolicy = LockPolicy.OPTIONAL
    default_lock_ttl_ms: int = 0
    max_lock_ttl_ms: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    assigned_code_validity_s: int = 0
    code_format: CodeFormat = field(default_factory=CodeFormat)
    metadata: str | None = None
    low_threshold: int = 0
    min_code_length: int = 0
    order_policy: OrderPolicy = OrderPolicy.INDEPENDENT
    exclusive_group: str = ""
    version: int = 1
    locks_until: datetime | None = None
    period_limits: PeriodLimits | None = None
    schedule: Schedule | None = None
    codes_have_terms: bool = False
    return_to_pool: bool = False
    archived_until: int | None = None


@value
class BookStats:
    """Counts of a book; codes by stored state."""

    available: int = 0
    assigned: int = 0
    redeemed: int = 0
    disabled: int = 0
    assignments: int = 0
    redemptions: int = 0
    rollbacks: int = 0
    discount_minor: int = 0

    @property
    def codes(self) -> int:
        """All codes of the book."""
        return self.available + self.assigned + self.redeemed + self.disabled
