"""The ledger is sealed as far as it is complete: each row once, whoever does it or is killed."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
from support.ledger_rows import REDEEMED
from support.sealing import SealedStore, sealed_store, some_events

from coupon_service.audit.leaves import row_of
from coupon_service.audit.seals import Position, begin_chain, is_intact, position_of, unpack_leaves
from coupon_service.maintenance import ledger_sealer
from coupon_service.maintenance.ledger_sealer import LedgerSealer
from coupon_service.store.events import insert_events
from coupon_service.store.ledger_rows import leaves_of, select_keys, select_rows
from coupon_service.store.pipeline import Connection
from coupon_service.store.seals import insert_keys, select_head, select_seal, select_seal_of

COLUMNS = "SELECT * FROM redemption_audit ORDER BY sequence"


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncGenerator[SealedStore]:
    async with sealed_store(database_url) as made:
        yield made


@pytest.fixture
def small_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seals of 10 rows, read 4 at a time."""
    monkeypatch.setattr(ledger_sealer, "SEALED_ROWS", 10)
    monkeypatch.setattr(ledger_sealer, "ROWS_AT_ONCE", 4)


async def sealed_numbers(store: SealedStore) -> list[int]:
    """The numbers of all rows that are sealed, in the order of the seals, which are intact."""

    async def work(connection: Connection) -> list[int]:
        head = await select_head(connection)
        position = Position(0, 0, begin_chain(head.log_id))
        numbers: list[int] = []
        while (link := await select_seal(connection, position.number + 1)) is not None:
            assert is_intact(position, link)
            leaves = unpack_leaves(link.seal.first_sequence, link.leaves)
            rows = await select_rows(
                connection, link.seal.first_sequence, link.seal.last_sequence, 10_000
            )
            keys = await select_keys(
                connection, {user for it in rows for user in (it.user_id, it.other_user_id)}
            )
            assert await leaves_of(rows, keys) == leaves
            numbers += [sequence for sequence, _ in leaves]
            position = position_of(link)
        assert head.position == position
        return numbers

    return await store.database.read("sealed", work)


def numbers_of(store: SealedStore) -> list[int]:
    return [number for (number,) in store.rows("SELECT sequence FROM redemption_audit ORDER BY 1")]


async def test_every_row_is_sealed_once(store: SealedStore, small_seals: None) -> None:
    for size in (1, 7, 10, 25, 4):
        await store.write(some_events(size, seed=size))
        assert await store.sealer.seal_all() == size
        assert await store.sealer.seal_all() == 0
    assert await sealed_numbers(store) == numbers_of(store)
    assert len(store.rows("SELECT FROM coupon_audit_seals")) == 7


async def test_postgresql_writes_the_records_that_are_defined(store: SealedStore) -> None:
    await store.write(some_events(300))
    await store.sealer.seal_all()
    with psycopg.connect(store.url) as connection:
        cursor = connection.execute(COLUMNS)
        names = [it.name for it in cursor.description or ()]
        found = [dict(zip(names, row, strict=True)) for row in cursor]
        texts = connection.execute("SELECT metadata::text FROM redemption_audit ORDER BY sequence")
        defined: list[Any] = []
        for columns, (metadata,) in zip(found, texts, strict=True):
            commitments = columns.pop("commitments")
            defined.append(row_of(columns | {"metadata": metadata}, commitments))

    async def work(connection: Connection) -> list[Any]:
        return await select_rows(connection, 1, 1_000, 1_000)

    assert await store.database.read("rows", work) == defined


async def test_numbers_that_no_row_has_are_in_a_seal(store: SealedStore) -> None:
    await store.write(some_events(2))
    with pytest.raises(ZeroDivisionError):
        await store.database.transaction("undone", _write_and_fail)
    await store.write(some_events(1, seed=2))
    assert await store.sealer.seal_all() == 3
    numbers = numbers_of(store)
    assert len(numbers) == 3
    assert numbers[-1] > 3
    assert await sealed_numbers(store) == numbers

    async def find(connection: Connection) -> int | None:
        link = await select_seal_of(connection, numbers[-1] - 1)
        return link.seal.number if link is not None else None

    assert await store.database.read("seal", find) == 1


async def _write_and_fail(connection: Connection) -> None:
    await insert_events(connection, [replace(REDEEMED, event_id=uuid4()) for _ in range(3)])
    raise ZeroDivisionError


async def test_nothing_is_sealed_above_a_transaction_that_is_open(
    store: SealedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(store.url) as open_one:
        open_one.execute("CREATE TEMP TABLE held ()")  # it has its id, and may write to the ledger
        await store.write(some_events(3))
        with monkeypatch.context() as patch:
            patch.setattr(ledger_sealer, "SETTLE_S", 0.1)
            assert await store.sealer.seal_all() == 0
        assert store.rows("SELECT FROM coupon_audit_seals") == []
        open_one.rollback()
    assert await store.sealer.seal_all() == 3


async def test_only_one_of_several_sealers_adds_a_seal(
    store: SealedStore, small_seals: None
) -> None:
    await store.write(some_events(95))
    async with sealed_store(store.url) as another, sealed_store(store.url) as third:
        sealers = [it.sealer for it in (store, another, third)]
        sealed = await asyncio.gather(*(it.seal_all() for it in sealers))
        await store.write(some_events(30, seed=2))
        sealed += await asyncio.gather(*(it.seal_all() for it in sealers))
    await store.sealer.seal_all()
    assert await sealed_numbers(store) == numbers_of(store)
    assert len(numbers_of(store)) == 125
    assert sum(sealed) <= 125


async def test_replicas_take_turns(store: SealedStore) -> None:
    await store.write(some_events(3))
    async with sealed_store(store.url) as another:
        counts = [await it.sealer.seal() for it in (store, another)]
    assert counts == [3, 0]


@pytest.mark.parametrize("moment", ["leaves_of", "insert_keys", "insert_seal", "after"])
async def test_a_sealer_that_is_killed_leaves_no_row_out_and_seals_none_twice(
    store: SealedStore, small_seals: None, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    await store.write(some_events(25))
    calls = 0

    name = "insert_seal" if moment == "after" else moment
    original = getattr(ledger_sealer, name)

    async def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if moment == "after":
            await original(*arguments)
        elif calls == 1 and moment != "insert_keys":
            return await original(*arguments)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(ledger_sealer, name, killed)
        with pytest.raises(asyncio.CancelledError):
            await store.sealer.seal_all()
    await store.sealer.seal_all()
    assert await sealed_numbers(store) == numbers_of(store)


async def test_a_seal_is_made_anew_when_values_were_erased_meanwhile(
    store: SealedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write(some_events(5))
    original = ledger_sealer.leaves_of
    erased: list[None] = []

    async def erase(*arguments: Any) -> Any:
        if not erased:
            erased.append(store.tamper("UPDATE coupon_audit_head SET erasures = erasures + 1"))
        return await original(*arguments)

    monkeypatch.setattr(ledger_sealer, "leaves_of", erase)
    assert await store.sealer.seal_all() == 5
    assert len(erased) == 1
    assert await sealed_numbers(store) == numbers_of(store)


async def test_no_key_is_made_for_a_user_who_was_erased_meanwhile(store: SealedStore) -> None:
    head = await store.database.read("head", select_head)
    store.tamper("UPDATE coupon_audit_head SET erasures = erasures + 1")

    async def make(connection: Connection) -> dict[str, bytes] | None:
        return await insert_keys(connection, {"ann"}, head)

    assert await store.database.transaction("keys", make) is None
    assert store.rows("SELECT FROM coupon_user_keys") == []


async def test_each_user_has_one_key(store: SealedStore) -> None:
    await store.write(some_events(40))
    await store.sealer.seal_all()
    keys = dict(store.rows("SELECT user_id, key FROM coupon_user_keys"))
    assert set(keys) == {"", "ann", "bob", "carl", "Zoë"}
    assert len({bytes(it) for it in keys.values()}) == 5
    assert {len(it) for it in keys.values()} == {32}
    await store.write(some_events(40, seed=2))
    await store.sealer.seal_all()
    assert dict(store.rows("SELECT user_id, key FROM coupon_user_keys")) == keys


async def test_who_makes_keys_gets_those_that_others_made_meanwhile(store: SealedStore) -> None:
    async def make(connection: Connection) -> dict[str, bytes] | None:
        head = await select_head(connection)
        return await insert_keys(connection, {"ann", "bob", "carl"}, head)

    store.tamper("INSERT INTO coupon_user_keys VALUES ('bob', '\\x01', now())")
    made = await store.database.transaction("keys", make)
    assert made == dict(store.rows("SELECT user_id, key FROM coupon_user_keys"))
    assert made is not None
    assert made.keys() == {"ann", "bob", "carl"}
    assert made["bob"] == b"\1"
    assert await store.database.transaction("keys", make) == made


async def test_an_interval_of_0_seals_nothing(store: SealedStore) -> None:
    await store.write(some_events(3))
    sealer = store.sealer
    off = LedgerSealer(sealer._horizon, sealer._reads, store.database, store.lane, 0)
    await off.run()
    assert store.rows("SELECT FROM coupon_audit_seals") == []


async def test_a_chain_of_another_ledger_begins_with_another_value(store: SealedStore) -> None:
    head = await store.database.read("head", select_head)
    assert head.position == Position(0, 0, begin_chain(head.log_id))
    assert head.log_id.version == 4
