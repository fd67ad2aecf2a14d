"""What has to catch the mutants of what proves the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import psycopg
from mutants.harness import Stack
from support.ledger_writers import write
from support.sealing import SealedStore, sealed_store, some_events

from coupon_service.audit.leaves import commitment
from coupon_service.maintenance import ledger_sealer
from coupon_service.store.ledger_rows import select_rows
from coupon_service.store.ledger_verifier import LedgerVerifier

Attack = Callable[[SealedStore], Awaitable[None]]


def _attack(it: Stack, attack: Attack) -> None:
    async def run() -> None:
        async with sealed_store(it.database_url) as store:
            await attack(store)

    asyncio.run(run())


async def _faults(store: SealedStore) -> list[str]:
    verified = LedgerVerifier(store.lane).verify()
    return [found.finding.fault.name async for each in verified for found in each.findings]


def row_that_is_committed_late(it: Stack) -> None:
    """A row that is committed after those with higher numbers is sealed as well."""

    async def attack(store: SealedStore) -> None:
        with psycopg.connect(store.url) as late:
            write(late)
            await store.write(some_events(3))
            with mock.patch.object(ledger_sealer, "SETTLE_S", 0.1):
                await store.sealer.seal_all()
            late.commit()
        await store.sealer.seal_all()
        assert await _faults(store) == []

    _attack(it, attack)


def row_that_is_changed(it: Stack) -> None:
    """The value of a row that was changed is found."""

    async def attack(store: SealedStore) -> None:
        await store.write(some_events(5))
        await store.sealer.seal_all()
        store.tamper("UPDATE redemption_audit SET discount_minor = 7 WHERE sequence = 3")
        assert await _faults(store) == ["ROW_CHANGED"]

    _attack(it, attack)


def row_where_no_number_was_used(it: Stack) -> None:
    """A row that is added at a number that was skipped is found."""

    async def attack(store: SealedStore) -> None:
        await store.write(some_events(2))
        store.rows("SELECT nextval('redemption_audit_numbers')")
        await store.write(some_events(2, seed=2))
        await store.sealer.seal_all()
        store.tamper(
            "INSERT INTO redemption_audit SELECT (jsonb_populate_record(it, jsonb_build_object("
            "'event_id', gen_random_uuid(), 'sequence', 3))).*"
            " FROM redemption_audit AS it WHERE sequence = 1"
        )
        assert await _faults(store) == ["ROW_INSERTED"]

    _attack(it, attack)


def newest_seal_that_is_dropped(it: Stack) -> None:
    """The newest seal that was dropped is found."""

    async def attack(store: SealedStore) -> None:
        await store.write(some_events(5))
        await store.sealer.seal_all()
        store.tamper("DELETE FROM coupon_audit_seals")
        assert await _faults(store) == ["SEAL_MISSING"]

    _attack(it, attack)


def erasure_while_a_seal_is_made(it: Stack) -> None:
    """A user who is erased while rows are being sealed has no key afterwards."""

    async def attack(store: SealedStore) -> None:
        await store.write(some_events(5))
        real: Any = ledger_sealer.users_of
        erased: list[None] = []

        def users_of(rows: Any) -> Any:
            users = real(rows)
            if not erased:  # between reading the rows and making the keys
                erased.append(store.tamper("UPDATE coupon_audit_head SET erasures = erasures + 1"))
                store.tamper("UPDATE redemption_audit SET user_id = 'erased-1'")
            return users

        ledger_sealer.users_of = users_of
        try:
            await store.sealer.seal_all()
        finally:
            ledger_sealer.users_of = real
        keys = {user for (user,) in store.rows("SELECT user_id FROM coupon_user_keys")}
        assert keys <= {"erased-1", "carl"}, keys

    _attack(it, attack)


def values_that_are_tried_out(it: Stack) -> None:
    """Who has a commitment and knows all values but the key cannot tell that it is of them."""

    async def attack(store: SealedStore) -> None:
        await store.write(some_events(5))
        await store.sealer.seal_all()
        ((event_id,),) = store.rows("SELECT event_id FROM redemption_audit WHERE sequence = 1")
        proof, _ = await LedgerVerifier(store.lane).prove(event_id, "", 0)

        async def row(connection: Any) -> Any:
            return (await select_rows(connection, 1, 1, 1))[0]

        guessed = (await store.database.read("row", row)).user
        assert proof.parts[0].commitment != commitment(b"", guessed)

    _attack(it, attack)
