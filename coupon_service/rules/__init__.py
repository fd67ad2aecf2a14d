"""Every rule of the service, once: pure functions of what was loaded and the time.

`decide` turns commands into outcomes and a write set, `refusals` says why not, `derived_states`
what is never stored, `stock` what a book has left. No I/O, no clock, no randomness, no SQL.
"""

from coupon_service.rules.code_lookup import (
    as_attempted,
    book_named,
    find_code,
    ids_of_attempt,
    in_scope,
)
from coupon_service.rules.decision import decide, refuse_all
from coupon_service.rules.derived_states import (
    adjusted,
    code_state,
    discount_of,
    effective_book_state,
    effective_code_state,
    lock_view,
    may_be_locked,
    order_discount,
    own_end,
)
from coupon_service.rules.erasures import order_named, orders_of_erased, users_of
from coupon_service.rules.orders import NO_COUPONS, discount_on_order, order_of
from coupon_service.rules.pool import returns_to_pool
from coupon_service.rules.refusals import (
    hidden_key,
    hidden_refusal,
    is_hidden,
    redemption_refusals,
)
from coupon_service.rules.stock import crossed, stock_left, stock_level
from coupon_service.rules.terms import book_of, terms_violations

__all__ = [
    "NO_COUPONS",
    "adjusted",
    "as_attempted",
    "book_named",
    "book_of",
    "code_state",
    "crossed",
    "decide",
    "discount_of",
    "discount_on_order",
    "effective_book_state",
    "effective_code_state",
    "find_code",
    "hidden_key",
    "hidden_refusal",
    "ids_of_attempt",
    "in_scope",
    "is_hidden",
    "lock_view",
    "may_be_locked",
    "order_discount",
    "order_named",
    "order_of",
    "orders_of_erased",
    "own_end",
    "redemption_refusals",
    "refuse_all",
    "returns_to_pool",
    "stock_left",
    "stock_level",
    "terms_violations",
    "users_of",
]
