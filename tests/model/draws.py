"""What the arguments of random programs are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import hypothesis.strategies as st
from model.state import USES, Message

SEEDS = st.integers(0, 2**64 - 1)

Draw = Callable[[Random], Any]
"""Makes an argument of a step."""


def any_of(values: Sequence[Any]) -> Draw:
    """One of the values, each as likely."""
    return lambda random: random.choice(values)


def all_of(draws: Mapping[str, Draw]) -> Draw:
    """A value for each name."""
    return lambda random: {name: draw(random) for name, draw in draws.items()}


def some_of(draw: Draw, least: int, most: int) -> Draw:
    """A few values."""
    return lambda random: [draw(random) for _ in range(random.randint(least, most))]


@dataclass(frozen=True, slots=True)
class Step:
    """A kind of step: the method that makes it, how frequent it is, and what it is given."""

    name: str
    weight: int
    arguments: Draw


def step(weight: int, **draws: Draw) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a method a step of programs, as frequent as its weight says."""

    def marked(method: Callable[..., None]) -> Callable[..., None]:
        vars(method)["step"] = Step(method.__name__, weight, all_of(draws))
        return method

    return marked


PER_MILLE = any_of(range(1_000))
"""Chooses one of what there is by then."""
REQUEST_IDS = any_of(["new", "new", "new", "", "r1", "r2"])
LENGTHS = any_of([0] * 6 + [3, 64])
USERS = any_of(["ann", "ann", "bob", "bob", "jos\u00e9", "jose\u0301"])
"""Three, one of them spelled in two ways."""
ORDERS = any_of(["", "", "", "", "order-1", "order-1", "\u00c4-2", "A\u0308-2"])
METADATA = any_of([{}, {}, {"shop": "x"}])
TTLS = any_of([0, 0, 1_000, 60_000, 60_000, 3_600_000])
WAITS = any_of([1, 1, 900, 900, 1_000, 4_000, 61_000, 300_000])
EUROS = [(amount, "EUR") for amount in (0, 1, 999, 1_000, 1_001, 5_000, 12_345, 99_999)]
AMOUNTS = any_of([(0, ""), (0, ""), (5_000, "USD"), *EUROS, *EUROS])
DISCOUNTS = any_of(
    [
        {"percent_off": {"basis_points": 1_500}},
        {"percent_off": {"basis_points": 3_333, "max_discount_minor": 500}},
        {"amount_off": {"amount_minor": 1_500}},
        {"benefit": {"description": "a gift"}},
        {
            "tiers": {
                "tiers": [
                    {"from_amount_minor": 1_000, "percent_off": {"basis_points": 1_000}},
                    {"from_amount_minor": 5_000, "amount_off": {"amount_minor": 700}},
                    {"from_amount_minor": 12_346, "percent_off": {"basis_points": 1_500}},
                ]
            }
        },
    ]
)
TERMS = all_of(
    {
        "max_redemptions": any_of([0, 1, 2, 3]),
        "start_time": any_of([0] * 6 + [2_000]),
        "end_time": any_of([0, 0, 0, 1_000, 300_000]),
        "discount": lambda random: DISCOUNTS(random) if random.random() < 0.4 else None,
        "metadata": METADATA,
    }
)
"""What a code says for itself; times are after that at which a program begins."""
NEW_CODES = all_of(
    {
        "row": any_of(range(6)),
        "name": lambda random: USERS(random) if random.random() < 0.5 else "",
        "terms": lambda random: TERMS(random) if random.random() < 0.7 else {},
    }
)
LIMITS = all_of(
    {
        "max_redemptions": any_of([0, 0, 0, 0, 4]),
        USES: any_of([1, 2, 2, 3, 3, 0]),
        "max_redemptions_per_user_per_code": any_of([0, 0, 0, 1, 2]),
        "max_redemptions_per_user": any_of([0, 0, 0, 3]),
        "max_assignments_per_user": any_of([0, 0, 0, 1, 2]),
        "max_discount_minor": any_of([0, 0, 0, 1_000, 3_000]),
        "max_redemptions_per_order": any_of([0, 0, 1, 2]),
    }
)
FIELDS = {
    "discount": DISCOUNTS,
    "min_order_amount_minor": any_of([0, 0, 0, 1_000]),
    "limits": LIMITS,
    "assignment_policy": any_of(["BEARER"] * 3 + ["REQUIRED"]),
    "lock_policy": any_of(["OPTIONAL"] * 4 + ["REQUIRED", "OFF"]),
    "default_lock_ttl": any_of([0, 5_000]),
    "max_lock_ttl": any_of([0, 20_000]),
    "start_time": any_of([0] * 16 + [2_000]),
    "end_time": any_of([0] * 12 + [300_000, 1_200_000]),
    "assigned_code_validity": any_of([0, 0, 60_000]),
    "min_code_length": any_of([0] * 8 + [64]),
    "return_to_pool": any_of([False, False, True]),
}
HOURS = all_of(
    {
        "zone": any_of(["UTC", "Asia/Kathmandu", "America/New_York", "23", "0"]),
        "today": any_of([False, False, True]),
        "spans": some_of(
            any_of([(-90, 2), (-90, 45), (-1, 1), (2, 3), (2, -90), (40, -2), (40, 2)]), 1, 2
        ),
    }
)
"""Opening hours around the time at which a program begins, in minutes, in a zone, or in one where
it is about this hour then."""
FIELDS["order_policy"] = any_of(["INDEPENDENT"] * 3 + ["COMBINABLE"] * 2 + ["EXCLUSIVE"])
FIELDS["exclusive_group"] = any_of(["", "", "group"])
FIELDS["schedule"] = lambda random: HOURS(random) if random.random() < 0.2 else None
PERIODS = all_of(
    {
        "period": any_of(["DAY", "DAY", "WEEK", "MONTH"]),
        "time_zone": any_of(["UTC", "Asia/Kathmandu", "America/New_York"]),
        "max_redemptions": any_of([0, 3]),
        "max_redemptions_per_user": any_of([1, 2]),
    }
)
FIELDS["period_limits"] = lambda random: PERIODS(random) if random.random() < 0.2 else None


def BOOKS(random: Random) -> Message:  # noqa: N802 - one of the draws
    """The fields of a book that go together."""
    book = all_of(FIELDS)(random)
    if "benefit" in book["discount"]:
        book["limits"]["max_discount_minor"] = 0
    if random.random() < 0.2:
        book |= {"assignment_policy": "REQUIRED", "assigned_code_validity": 60_000}
    book["return_to_pool"] &= book["assignment_policy"] == "REQUIRED"
    if book["order_policy"] == "INDEPENDENT":
        book["limits"]["max_redemptions_per_order"], book["exclusive_group"] = 0, ""
    return book


def CHANGES(random: Random) -> Message:  # noqa: N802 - one of the draws
    """Another value of one field."""
    name = random.choice(list(FIELDS))
    return {name: FIELDS[name](random)}


ALONE = any_of([False, False, False, True])
"""Whether a user calls, and no service for it."""
ITEM = {
    "which": PER_MILLE,
    "alone": ALONE,
    "name": USERS,
    "order_id": ORDERS,
    "money": AMOUNTS,
    "kind": any_of(range(12)),
    "request_id": REQUEST_IDS,
}
ITEMS = all_of(ITEM)
TIMES = ("start_time", "end_time")
DURATIONS = ("default_lock_ttl", "max_lock_ttl", "assigned_code_validity")


def steps_of(program: type) -> list[Step]:
    """The steps of a class of programs, those of its bases first."""
    members = [it for kind in reversed(program.__mro__) for it in vars(kind).values()]
    marks = (getattr(it, "step", None) for it in members)
    return [it for it in marks if isinstance(it, Step)]
