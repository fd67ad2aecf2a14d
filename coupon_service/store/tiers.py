"""Tiers of a discount as they are stored: JSON, one list a tier."""

from __future__ import annotations

import json
from functools import lru_cache

from coupon_service.model import AmountOff, PercentOff, Tier, TieredDiscount


def tiers_json(discount: TieredDiscount) -> str:
    """The tiers as JSON: [from_amount_minor, {"percent": basis points, "max": cap}] or
    [from_amount_minor, {"amount": minor units}]."""
    return json.dumps([[it.from_amount_minor, _off(it.discount)] for it in discount.tiers])


def _off(discount: PercentOff | AmountOff) -> dict[str, int]:
    if isinstance(discount, AmountOff):
        return {"amount": discount.amount_minor}
    return {"percent": discount.basis_points, "max": discount.max_discount_minor}


@lru_cache
def tiers_of_json(text: str) -> TieredDiscount:
    """The tiers that `tiers_json` wrote; remembered, since each batch reads its books anew."""
    return TieredDiscount(
        tuple(
            Tier(
                from_amount_minor,
                AmountOff(off["amount"])
                if "amount" in off
                else PercentOff(off["percent"], off["max"]),
            )
            for from_amount_minor, off in json.loads(text)
        )
    )
