"""A shard that is found elsewhere: by its forwarding address, without an error for anybody."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from support.command_line import run
from support.service import Api, ServerThread, books, new_codes, settings_for
from support.shards import business_in, make_shards
from support.waiting import until

from coupon_service.settings import Settings
from coupon_service.store.placement import (
    MAKE_PLACES,
    Address,
    Forward,
    address_of,
    url_at,
    write_arrival,
    write_forward,
)

OF = 2


@dataclass
class Places:
    """Two databases; the second shard is in the first of them, and has come from nowhere yet."""

    urls: list[str]
    settings: Settings

    def books_at(self, place: int) -> int:
        with psycopg.connect(self.urls[place]) as connection:
            row = connection.execute("SELECT count(*) FROM coupon_01.coupon_books").fetchone()
        return row[0] if row else 0

    def switch(self, number: int, here: int, there: int) -> None:
        """Has the second shard be there and not here from now on, as a move does."""
        address = address_of(self.urls[there])
        with psycopg.connect(self.urls[there]) as connection:
            connection.execute(MAKE_PLACES)
            write_arrival(connection, "coupon_01", number, "token")
        with psycopg.connect(self.urls[here]) as connection:
            connection.execute(MAKE_PLACES)
            connection.execute("ALTER SCHEMA coupon_01 RENAME TO coupon_01_before")
            write_forward(connection, "coupon_01", Forward(number, address, "token"))


@pytest.fixture
def places(new_empty_database: Any, redis_server_url: str) -> Iterator[Places]:
    with new_empty_database() as here, new_empty_database() as there:
        make_shards(here, of=OF)
        make_shards(there, of=OF)
        settings = settings_for(
            here,
            redis_server_url,
            shards=OF,
            shard_urls=SecretStr(here),
            default_business="",
            pool_timeout_ms=10_000,
            default_deadline_ms=30_000,
        )
        yield Places([here, there], settings)


def test_calls_go_on_where_the_shard_is(places: Places) -> None:
    business = business_in(1, OF)
    with ServerThread(places.settings) as server:
        api = Api(server.address)
        book = api.book(codes=new_codes(1), business_id=business)
        places.switch(1, here=0, there=1)
        with ThreadPoolExecutor(8) as threads:
            made = [
                threads.submit(api.book, codes=new_codes(1), business_id=business)
                for _ in range(24)
            ]
            assert len({it.result().book_id for it in made}) == 24
        assert places.books_at(1) == 24
        of_one = books.ListCouponBooksRequest(business_id=business)
        found = api.books.ListCouponBooks(of_one).coupon_books
        assert book.book_id not in {it.book_id for it in found}
        api.close()


def test_an_idle_worker_and_one_that_starts_later_find_it_as_well(
    places: Places, tmp_path: Path
) -> None:
    with ServerThread(places.settings) as server:
        until(lambda: _reaches(server))
        places.switch(1, here=0, there=1)
        until(lambda: bool(server.server.shards[1].database.has_moved))
        until(lambda: _reaches(server))
    with ServerThread(places.settings) as server:
        until(lambda: _reaches(server))
        api = Api(server.address)
        api.book(codes=new_codes(1), business_id=business_in(1, OF))
        assert places.books_at(1) == 1
        api.close()
    done = run(
        tmp_path,
        "shards",
        "status",
        DATABASE_URL=places.urls[0],
        COUPON_SHARDS=str(OF),
    )
    assert done.returncode == 0
    first, second = done.stdout.splitlines()[1:]
    assert first.endswith(" ok")
    assert second.endswith(" ok, moved: update COUPON_SHARD_URLS")
    assert str(address_of(places.urls[1])) in second


def test_migrate_makes_no_shard_anew_where_it_was(places: Places, tmp_path: Path) -> None:
    places.switch(1, here=0, there=1)
    done = run(tmp_path, "migrate", "up", DATABASE_URL=places.urls[0], COUPON_SHARDS=str(OF))
    assert done.returncode == 0
    with psycopg.connect(places.urls[0]) as connection:
        found = connection.execute("SELECT to_regnamespace('coupon_01') IS NULL").fetchone()
    assert found == (True,)


def test_an_address_that_was_left_before_the_shard_came_back_is_not_followed(
    places: Places,
) -> None:
    places.switch(1, here=0, there=1)
    with ServerThread(places.settings) as server:
        api = Api(server.address)
        business = business_in(1, OF)
        api.book(codes=new_codes(1), business_id=business)
        make_shards_again(places.urls[0])
        with psycopg.connect(places.urls[1]) as connection:  # back, before it has arrived
            connection.execute("ALTER SCHEMA coupon_01 RENAME TO coupon_01_before")
            back = Forward(2, address_of(places.urls[0]), "token")
            write_forward(connection, "coupon_01", back)
        api.book(codes=new_codes(1), business_id=business)
        assert places.books_at(0) == 1
        api.close()


def make_shards_again(url: str) -> None:
    """The schema is there again, beside the address that the shard left when it went."""
    with psycopg.connect(url) as connection:
        connection.execute("ALTER SCHEMA coupon_01_before RENAME TO coupon_01")


def _reaches(server: ServerThread) -> bool:
    labels = {"shard": "coupon_01"}
    return server.registry.get_sample_value("coupon_shard_reaches", labels) == 1


def test_an_address_keeps_the_user_of_the_url_or_is_one_of_the_settings() -> None:
    url = f"postgresql://app:{uuid4().hex}@old:5433/shop?sslmode=require"
    to = Address("new", "5432", "shop")
    parts = conninfo_to_dict(url_at(to, url))
    assert (parts["host"], parts["port"], parts["user"]) == ("new", "5432", "app")
    assert parts["sslmode"] == "require"
    assert str(parts["password"]) in url
    known = "postgresql://other@new/shop"
    assert url_at(to, url, [url, known]) == known
