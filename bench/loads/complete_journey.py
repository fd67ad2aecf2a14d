"""The files of "The Complete Journey", a year of a grocer's coupon campaigns."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from coupon_service.cli.failure import CommandError

COUPONS_PER_ORDER: Final = 4
"""Of which each takes a quarter off."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign and its codes."""

    campaign_id: str
    kind: str
    duration: timedelta
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Redemption:
    """A line of redemptions.csv; its number names the order, where each is one of its own."""

    number: int
    day: date
    household: str
    campaign_id: str
    code: str


@dataclass(frozen=True, slots=True)
class Year:
    """The campaigns and redemptions of the data set. Redemptions are ordered by day."""

    campaigns: tuple[Campaign, ...]
    redemptions: tuple[Redemption, ...]

    def assignments(self) -> list[tuple[str, str]]:
        """Each code with each household that redeemed it."""
        return list(dict.fromkeys((it.code, it.household) for it in self.redemptions))

    def answers(self, per_user: int, *, combinable: bool) -> Counter[str]:
        """How many redemptions are to be accepted (OK), and refused for which reason, with a limit
        per household and code."""
        answers = Counter[str]()
        by_user = Counter[tuple[str, str]]()
        orders: defaultdict[tuple[str, date], set[str]] = defaultdict(set)
        for it in self.redemptions:
            order = orders[it.household, it.day]
            if combinable and it.code in order:
                answers["ORDER_ALREADY_REDEEMED"] += 1
            elif by_user[it.code, it.household] == per_user:
                answers["USER_LIMIT_EXCEEDED"] += 1
            elif combinable and len(order) == COUPONS_PER_ORDER:
                answers["ORDER_FULLY_DISCOUNTED"] += 1
            else:
                answers["OK"] += 1
                by_user[it.code, it.household] += 1
                order.add(it.code)
        return answers

    def orders(self) -> int:
        """On how many days households redeemed something."""
        return len({(it.household, it.day) for it in self.redemptions})


def read_year(folder: Path) -> Year:
    """Read the files of the data set. Raises CommandError."""
    try:
        codes: defaultdict[str, list[str]] = defaultdict(list)
        for row in _rows(folder / "coupons.csv"):
            codes[row["campaign_id"]].append(_code(row))
        campaigns = tuple(
            Campaign(
                campaign_id=row["campaign_id"],
                kind=row["campaign_type"],
                duration=date.fromisoformat(row["end_date"])
                - date.fromisoformat(row["start_date"]),
                codes=tuple(codes[row["campaign_id"]]),
            )
            for row in _rows(folder / "campaigns.csv")
        )
        redemptions = [
            Redemption(
                number=number,
                day=date.fromisoformat(row["redemption_date"]),
                household=row["household_id"],
                campaign_id=row["campaign_id"],
                code=_code(row),
            )
            for number, row in enumerate(_rows(folder / "redemptions.csv"), start=1)
        ]
    except OSError as error:
        raise CommandError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except (KeyError, ValueError) as error:
        raise CommandError(f"The files in {folder} are not the data set: {error}.") from error
    return Year(campaigns, tuple(sorted(redemptions, key=lambda it: (it.day, it.number))))


def _rows(path: Path) -> Iterable[Mapping[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _code(row: Mapping[str, str]) -> str:
    return f"{row['campaign_id']}-{row['coupon_upc']}"
