"""Limits a day, as callers meet them when days go by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from support.ahead import Shop, server_ahead
from support.calls import reasons_of, tried
from support.invariants import assert_adds_up
from support.service import books, refused, settings_for
from support.store import opened

from coupon_service.maintenance.period_pruner import PeriodPruner
from coupon_service.settings import Settings

ZONE = "Asia/Kathmandu"
UNLIMITED = books.BookLimits(max_redemptions_per_code=0)


@pytest.fixture(scope="module")
def settings(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Generator[Settings]:
    with new_database() as url:
        yield settings_for(url, redis_server_url)


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[Shop]:
    with server_ahead(settings) as shop:
        yield shop


@pytest.fixture
def shop(running: Shop) -> Shop:
    """It is noon in ZONE, until a test says otherwise."""
    local = datetime.now(UTC).astimezone(ZoneInfo(ZONE))
    running.clock.stands_at = local.replace(hour=12, minute=0, second=0).astimezone(UTC)
    running.clock.ahead = timedelta()
    return running


@pytest.fixture
def database(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def prune(shop: Shop, settings: Settings) -> int:
    async def pruned() -> int:
        assert settings.database_url is not None
        async with opened(settings.database_url.get_secret_value()) as database:
            return await PeriodPruner(database, shop.clock.now).prune()

    return asyncio.run(pruned())


def code_of(shop: Shop, **limits: int) -> str:
    period = books.PeriodLimits(period=books.PERIOD_DAY, time_zone=ZONE, **limits)
    return shop.api.code(period_limits=period, limits=UNLIMITED)


def counted(database: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    rows = database.execute(
        "SELECT user_id, redemptions FROM coupon_period_counters ORDER BY period_start, user_id"
    )
    return rows.fetchall()


def test_a_limit_of_a_day_begins_anew_at_its_midnight(shop: Shop) -> None:
    code = code_of(shop, max_redemptions_per_user=1)
    shop.api.redeem(code, "ann")
    with refused("USER_PERIOD_LIMIT_EXCEEDED") as it:
        shop.api.redeem(code, "ann")
    assert it.retry_after_s is None
    begins = datetime.fromisoformat(it.metadata["next_period_time"])
    assert timedelta(hours=11, minutes=59) < begins - shop.clock.now() <= timedelta(hours=12)
    checked = shop.api.validate(code, "ann")
    assert reasons_of(checked) == ["USER_PERIOD_LIMIT_EXCEEDED"]
    shop.clock.ahead += begins - shop.clock.now() - timedelta(seconds=2)
    assert tried(lambda: shop.api.redeem(code, "ann")) == "USER_PERIOD_LIMIT_EXCEEDED"
    shop.clock.ahead += timedelta(seconds=2)
    shop.api.redeem(code, "ann")


@pytest.mark.one_shard
def test_counts_are_deleted_some_days_later_and_roll_backs_still_work(
    shop: Shop, database: psycopg.Connection[Any], settings: Settings
) -> None:
    database.execute("TRUNCATE coupon_period_counters")
    code = code_of(shop, max_redemptions=2, max_redemptions_per_user=1)
    of_old = shop.api.redeem(code, "ann").redemption
    shop.clock.ahead += timedelta(days=2)
    shop.api.redeem(code, "bob")
    assert prune(shop, settings) == 0
    assert counted(database) == [("", 1), ("ann", 1), ("", 1), ("bob", 1)]
    shop.clock.ahead += timedelta(days=2)
    assert prune(shop, settings) == 2
    assert counted(database) == [("", 1), ("bob", 1)]
    shop.api.rollback(of_old.redemption_id)
    assert counted(database) == [("", 1), ("bob", 1)]
    shop.api.redeem(code, "ann")
    assert shop.api.stats(of_old.book_id).redemption_count == 2
    assert_adds_up(database, [of_old.book_id])


@pytest.mark.one_shard
def test_the_table_itself_takes_no_more_than_the_limit(
    shop: Shop, database: psycopg.Connection[Any]
) -> None:
    shop.api.redeem(code_of(shop, max_redemptions=1), "ann")
    for redemptions in (2, -1):
        with pytest.raises(psycopg.errors.CheckViolation, match="period_cap"):
            database.execute("UPDATE coupon_period_counters SET redemptions = %s", [redemptions])
