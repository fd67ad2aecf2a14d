"""Discounts between proto and model."""

from __future__ import annotations

from typing import Final

from coupon_service.model import AmountOff, Benefit, Discount, PercentOff, Tier, TieredDiscount
from coupon_service.rpc.convert.fields import AMOUNT_MAX_MINOR, Fields
from coupon_service.v1 import coupon_book_service_pb2 as pb

TIERS_MAX: Final = 20


def read_discount(fields: Fields, message: pb.Discount) -> Discount:
    """The discount of the field `discount`."""
    inside = fields.within("discount")
    match message.WhichOneof("kind"):
        case "percent_off":
            return _percent_off(inside, message.percent_off)
        case "amount_off":
            return _amount_off(inside, message.amount_off)
        case "benefit":
            description, inside = message.benefit.description, inside.within("benefit")
            return Benefit(inside.text("description", description, 256))
        case "tiers":
            return _tiers(inside.within("tiers"), message.tiers)
        case _:
            fields.refuse("discount", "expected percent_off, amount_off, benefit or tiers")
            return Benefit("")


def _percent_off(fields: Fields, message: pb.PercentOff) -> PercentOff:
    inside = fields.within("percent_off")
    return PercentOff(
        inside.whole("basis_points", message.basis_points, 1, 10_000),
        inside.whole("max_discount_minor", message.max_discount_minor, 0, AMOUNT_MAX_MINOR),
    )


def _amount_off(fields: Fields, message: pb.AmountOff) -> AmountOff:
    inside = fields.within("amount_off")
    return AmountOff(inside.whole("amount_minor", message.amount_minor, 1, AMOUNT_MAX_MINOR))


def _tiers(fields: Fields, message: pb.TieredDiscount) -> TieredDiscount:
    if not 1 <= len(message.tiers) <= TIERS_MAX:
        fields.refuse("tiers", f"expected 1 to {TIERS_MAX} tiers")
        return TieredDiscount(())
    tiers: list[Tier] = []
    for index, tier in enumerate(message.tiers):
        inside = fields.within(f"tiers[{index}]")
        from_amount_minor = inside.whole(
            "from_amount_minor", tier.from_amount_minor, 1, AMOUNT_MAX_MINOR
        )
        if tiers and from_amount_minor <= tiers[-1].from_amount_minor:
            inside.refuse("from_amount_minor", "expected more than that of the tier before")
        tiers.append(Tier(from_amount_minor, _off(inside, tier)))
    return TieredDiscount(tuple(tiers))


def _off(fields: Fields, tier: pb.Tier) -> PercentOff | AmountOff:
    match tier.WhichOneof("kind"):
        case "percent_off":
            return _percent_off(fields, tier.percent_off)
        case "amount_off":
            return _amount_off(fields, tier.amount_off)
        case _:
            fields.refuse("kind", "expected percent_off or amount_off")
            return AmountOff(0)


def discount_message(discount: Discount) -> pb.Discount:
    """The discount as a client sees it."""
    match discount:
        case PercentOff():
            return pb.Discount(percent_off=_percent_off_message(discount))
        case AmountOff(amount_minor):
            return pb.Discount(amount_off=pb.AmountOff(amount_minor=amount_minor))
        case Benefit(description):
            return pb.Discount(benefit=pb.Benefit(description=description))
        case TieredDiscount(tiers):
            return pb.Discount(tiers=pb.TieredDiscount(tiers=map(_tier_message, tiers)))


def _percent_off_message(discount: PercentOff) -> pb.PercentOff:
    return pb.PercentOff(
        basis_points=discount.basis_points, max_discount_minor=discount.max_discount_minor
    )


def _tier_message(tier: Tier) -> pb.Tier:
    message = pb.Tier(from_amount_minor=tier.from_amount_minor)
    match tier.discount:
        case PercentOff():
            message.percent_off.CopyFrom(_percent_off_message(tier.discount))
        case AmountOff(amount_minor):
            message.amount_off.amount_minor = amount_minor
    return message
