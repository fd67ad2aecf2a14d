"""What is proved of the ledger stays proved when users are erased."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

import pytest
from support.person import Person, erase, pseudonym_of
from support.service import Api, ServerThread, settings_for

from coupon_service.audit.leaves import users_of
from coupon_service.audit.seals import Leaf
from coupon_service.audit.verification import NO_LEAF
from coupon_service.store.ledger_rows import leaves_of, select_keys, select_rows
from coupon_service.store.pipeline import Connection
from coupon_service.store.seals import insert_keys, select_head

ALL = 2**40


@pytest.fixture
def unsealed(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> Iterator[ServerThread]:
    """A server on data of its own, which seals nothing by itself."""
    with (
        new_database() as database_url,
        ServerThread(settings_for(database_url, redis_url, seal_interval_ms=0)) as server,
    ):
        yield server


def leaves(server: ServerThread, *, make_keys: bool = False) -> list[Leaf]:
    """Of all rows; `make_keys`: for users who have none, as the sealer does."""

    async def read() -> list[Leaf]:
        connection = await Connection.connect(server.database_url)
        async with connection:
            rows = await select_rows(connection, 0, ALL, ALL)
            users = users_of(rows)
            if make_keys:
                known = await select_keys(connection, users)
                head = await select_head(connection)
                assert await insert_keys(connection, users - known.keys(), head) is not None
            return await leaves_of(rows, await select_keys(connection, users))

    return asyncio.run(read())


def users_with_keys(server: ServerThread) -> set[str]:
    async def read() -> set[str]:
        connection = await Connection.connect(server.database_url)
        async with connection:
            cursor = await connection.execute("SELECT user_id FROM coupon_user_keys")
            return {it for (it,) in await cursor.fetchall()}

    return asyncio.run(read())


def test_leaves_are_what_they_were(unsealed: ServerThread) -> None:
    with closing(Api(unsealed.address)) as api:
        person = Person(api)
        person.live()
        before = leaves(unsealed, make_keys=True)
        assert person.user_id in users_with_keys(unsealed)
        erase(api, person.user_id)
        assert person.user_id not in users_with_keys(unsealed)
        after = leaves(unsealed, make_keys=True)
        assert after[: len(before)] == before[:]
        erase(api, person.friend)
        assert leaves(unsealed)[: len(after)] == after
        assert not {person.user_id, person.friend} & users_with_keys(unsealed)
        assert pseudonym_of(api, person.user_id) in users_with_keys(unsealed)


def test_rows_that_were_not_sealed_before_have_leaves(unsealed: ServerThread) -> None:
    with closing(Api(unsealed.address)) as api:
        person = Person(api)
        person.live()
        erase(api, person.user_id)
        first = leaves(unsealed, make_keys=True)
        assert NO_LEAF not in [leaf for _, leaf in first]
        erase(api, person.friend)
        assert leaves(unsealed)[: len(first)] == first
