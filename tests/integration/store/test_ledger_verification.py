"""What is changed in the sealed ledger is found and named; the rest is proved.

Rows are changed by a superuser who has switched the triggers off, as nobody else can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from random import Random
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from support.sealing import SealedStore, sealed_store, some_events
from support.store import Clock, make_book

from coupon_service.audit.checkpoints import Checkpoint
from coupon_service.audit.leaves import erased
from coupon_service.audit.proofs import verify_inclusion
from coupon_service.audit.verification import Fault
from coupon_service.errors import EventNotFound, EventNotSealed, LedgerChanged, SealNotFound
from coupon_service.maintenance import ledger_sealer
from coupon_service.model import EventType
from coupon_service.store import ledger_verifier
from coupon_service.store.books import Books
from coupon_service.store.ledger_rows import select_keys, select_rows
from coupon_service.store.ledger_verifier import LedgerVerifier, Verified
from coupon_service.store.pipeline import Connection
from coupon_service.store.seals import select_head

Found = tuple[str, int]
"""A fault, and the number of the row, or of the seal where it is about none."""

ROWS = 60


@pytest_asyncio.fixture
async def store(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[SealedStore]:
    """With sixty rows, numbered from 1, in six seals."""
    monkeypatch.setattr(ledger_sealer, "SEALED_ROWS", 10)
    monkeypatch.setattr(ledger_sealer, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(ledger_verifier, "ROWS_AT_ONCE", 4)
    async with sealed_store(database_url) as made:
        await made.write(some_events(ROWS))
        assert await made.sealer.seal_all() == ROWS
        yield made


async def verified(
    store: SealedStore, start_time: datetime | None = None, end_time: datetime | None = None
) -> list[Verified]:
    verifier = LedgerVerifier(store.lane)
    return [it async for it in verifier.verify(start_time, end_time)]


async def found_in(store: SealedStore) -> list[Found]:
    messages = await verified(store)
    assert messages[-1].is_done
    return [
        (found.finding.fault.name, found.finding.sequence or found.finding.seal_number)
        for it in messages
        for found in it.findings
    ]


async def test_untouched_ledger_is_found_as_it_was_sealed(store: SealedStore) -> None:
    await store.write(some_events(7, seed=2))
    messages = await verified(store)
    assert [it.sequence for it in messages] == [10, 20, 30, 40, 50, 60, 60]
    last = messages[-1]
    assert (last.rows, last.seals, last.unsealed_rows, last.unnumbered_rows) == (ROWS, 6, 7, 0)
    assert [it.findings for it in messages] == [()] * 7


async def test_rows_from_before_the_numbers_are_counted(store: SealedStore) -> None:
    store.tamper(
        "INSERT INTO redemption_audit SELECT (jsonb_populate_record(it, jsonb_build_object("
        "'event_id', gen_random_uuid(), 'sequence', NULL))).* FROM redemption_audit AS it"
    )
    assert (await verified(store))[-1].unnumbered_rows == ROWS
    assert await found_in(store) == []


COLUMNS = {
    "smallint": "{} + 1",
    "integer": "{} + 1",
    "bigint": "{} # 1",
    "text": "{} || 'x'",
    "uuid": "gen_random_uuid()",
    "timestamp with time zone": "{} + interval '1 microsecond'",
    "jsonb": """'{{"x": 1}}'::jsonb""",
}
TYPES = """
SELECT column_name::text, data_type::text FROM information_schema.columns
WHERE table_name = 'redemption_audit' AND column_name NOT IN ('sequence', 'commitments')
"""


async def test_a_change_of_any_column_is_found_and_named(store: SealedStore) -> None:
    chance = Random(1)
    columns = store.rows(TYPES)
    assert len(columns) == 30
    for column, kind in columns:
        set_to = COLUMNS[kind].format(f"coalesce({column}, {_NOTHING[kind]})")
        number = chance.randrange(1, ROWS + 1)
        where = f"WHERE sequence = {number}"
        store.tamper(
            f"CREATE TABLE kept_{column} AS SELECT * FROM redemption_audit {where}",
            f"UPDATE redemption_audit SET {column} = {set_to} {where}",
        )
        found = await found_in(store)
        assert found in ([("ROW_CHANGED", number)], [("KEY_MISSING", number)]), column
        store.tamper(
            f"DELETE FROM redemption_audit {where}",
            f"INSERT INTO redemption_audit SELECT * FROM kept_{column}",
        )
    assert await found_in(store) == []


_NOTHING = {
    "smallint": "0",
    "integer": "0",
    "bigint": "0",
    "text": "''",
    "uuid": "NULL",
    "timestamp with time zone": "now()",
    "jsonb": "NULL",
}

ANOTHER_ROW = """
INSERT INTO redemption_audit SELECT (jsonb_populate_record(it, jsonb_build_object(
    'event_id', gen_random_uuid(), 'sequence', {number}))).*
FROM redemption_audit AS it WHERE sequence = 5
"""
SWAPPED = """
UPDATE redemption_audit SET sequence = CASE sequence WHEN 13 THEN -1 ELSE -2 END
WHERE sequence IN (13, 27)
"""
SWAPPED_BACK = """
UPDATE redemption_audit SET sequence = CASE sequence WHEN -2 THEN 13 ELSE 27 END
WHERE sequence < 0
"""
TAMPERED: dict[str, tuple[list[str], list[Found]]] = {
    "a row that is deleted": (
        ["DELETE FROM redemption_audit WHERE sequence = 17"],
        [("ROW_MISSING", 17)],
    ),
    "the first and the last row of a seal that are deleted": (
        ["DELETE FROM redemption_audit WHERE sequence IN (21, 30)"],
        [("ROW_MISSING", 21)],
    ),
    "all rows of a seal that are deleted": (
        ["DELETE FROM redemption_audit WHERE sequence BETWEEN 21 AND 30"],
        [("ROW_MISSING", 21)],
    ),
    "a row whose number is taken away": (
        ["UPDATE redemption_audit SET sequence = NULL WHERE sequence = 33"],
        [("ROW_MISSING", 33)],
    ),
    "a row that is inserted instead of another": (
        ["DELETE FROM redemption_audit WHERE sequence = 12", ANOTHER_ROW.format(number=12)],
        [("ROW_CHANGED", 12)],
    ),
    "a row that is inserted below the first number": (
        [ANOTHER_ROW.format(number=-3)],
        [("ROW_INSERTED", -3)],
    ),
    "rows that are swapped": (
        [SWAPPED, SWAPPED_BACK],
        [("ROW_CHANGED", 13), ("ROW_CHANGED", 27)],
    ),
    "a key that is gone": (
        ["DELETE FROM coupon_user_keys WHERE user_id = 'Zoë'"],
        [],
    ),
    "values that are erased without an event": (
        ["UPDATE redemption_audit SET commitments = '\\x00' WHERE sequence = 44"],
        [("ROW_CHANGED", 44)],
    ),
    "a seal in the middle that is dropped": (
        ["DELETE FROM coupon_audit_seals WHERE number = 3"],
        [("SEAL_MISSING", 3)],
    ),
    "the first seal that is dropped": (
        ["DELETE FROM coupon_audit_seals WHERE number = 1"],
        [("SEAL_MISSING", 1)],
    ),
    "the newest seal that is dropped": (
        ["DELETE FROM coupon_audit_seals WHERE number = 6"],
        [("SEAL_MISSING", 6)],
    ),
    "all seals that are dropped": (
        ["DELETE FROM coupon_audit_seals"],
        [("SEAL_MISSING", 1)],
    ),
    "a root that is changed": (
        ["UPDATE coupon_audit_seals SET root = sha256(root) WHERE number = 2"],
        [("SEAL_CHANGED", 2)],
    ),
    "a list of leaves that is changed": (
        ["UPDATE coupon_audit_seals SET leaves = set_byte(leaves, 40, 7) WHERE number = 2"],
        [("SEAL_CHANGED", 2)],
    ),
    "a time of a seal that is changed": (
        ["UPDATE coupon_audit_seals SET seal_time = now() WHERE number = 5"],
        [("SEAL_CHANGED", 5)],
    ),
    "a head that is changed": (
        ["UPDATE coupon_audit_head SET chain = sha256(chain)"],
        [("SEAL_CHANGED", 6)],
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_is_found(store: SealedStore, what: str) -> None:
    statements, found = TAMPERED[what]
    store.tamper(*statements)
    actual = await found_in(store)
    if what == "a key that is gone":  # of each seal the first
        assert actual
        assert {fault for fault, _ in actual} == {"KEY_MISSING"}
    else:
        assert actual == found


async def test_seals_in_another_order_are_found(store: SealedStore) -> None:
    store.tamper(
        "UPDATE coupon_audit_seals SET number = -number WHERE number IN (2, 4)",
        "UPDATE coupon_audit_seals SET number = CASE number WHEN -2 THEN 4 ELSE 2 END"
        " WHERE number < 0",
    )
    assert ("SEAL_CHANGED", 2) in await found_in(store)


async def test_a_row_that_is_inserted_where_no_number_was_used_is_found(
    store: SealedStore,
) -> None:
    store.rows("SELECT nextval('redemption_audit_numbers')")  # as a transaction that is undone
    await store.write(some_events(2, seed=3))
    await store.sealer.seal_all()
    store.tamper(ANOTHER_ROW.format(number=61))
    assert await found_in(store) == [("ROW_INSERTED", 61)]


async def test_a_history_that_is_rewritten_as_a_whole_has_another_chain(
    store: SealedStore,
) -> None:
    before = await store.database.read("head", select_head)
    store.tamper(
        "UPDATE redemption_audit SET discount_minor = 0 WHERE sequence = 1",
        "DELETE FROM coupon_audit_seals",
        "UPDATE coupon_audit_head SET number = 0, last_sequence = 0, chain = NULL",
    )
    assert await store.sealer.seal_all() == ROWS
    assert await found_in(store) == []
    after = await store.database.read("head", select_head)
    assert after.position.number == before.position.number
    assert after.position.chain != before.position.chain


async def test_only_seals_of_a_time_are_compared(store: SealedStore) -> None:
    times = [time for (time,) in store.rows("SELECT seal_time FROM coupon_audit_seals ORDER BY 1")]
    store.tamper("UPDATE redemption_audit SET discount_minor = 0 WHERE sequence IN (5, 25, 55)")
    messages = await verified(store, times[1], times[4])
    assert [it.finding.sequence for each in messages for it in each.findings] == [25]
    assert (messages[-1].seals, messages[-1].unnumbered_rows) == (3, None)
    assert (await verified(store, start_time=times[5]))[0].findings[0].finding.sequence == 55


async def erase(store: SealedStore, number: int) -> None:
    """Erases the user of a row, as EraseUser does."""

    async def commitments(connection: Connection) -> bytes:
        (row,) = await select_rows(connection, number, number, 1)
        keys = await select_keys(connection, {row.user_id, row.other_user_id})
        return erased(row, keys, user=True, other=False)

    kept = await store.database.read("row", commitments)
    store.tamper(
        f"""
        UPDATE redemption_audit SET commitments = '\\x{kept.hex()}', order_id = NULL,
            metadata = NULL, fingerprint = 0, user_id = 'erased-1',
            caller = CASE caller WHEN user_id THEN 'erased-1' ELSE caller END,
            peer = CASE WHEN caller = other_user_id THEN peer ELSE '' END,
            user_agent = CASE WHEN caller = other_user_id THEN user_agent ELSE '' END
        WHERE sequence = {number}
        """
    )


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 8, 9, 10])
async def test_erased_row_is_as_it_was_sealed_when_an_event_says_so(
    store: SealedStore, number: int
) -> None:
    await erase(store, number)
    assert await found_in(store) == [("ERASURE_UNRECORDED", number)]
    store.tamper(
        "INSERT INTO redemption_audit (event_id, book_id, event_time, fingerprint, bucket,"
        " type, user_id, caller, peer, user_agent, request_id) VALUES (gen_random_uuid(),"
        f" gen_random_uuid(), now(), 0, 0, {EventType.USER_ERASED:d}, 'erased-1',"
        " 'dpo', '', '', '')"
    )
    assert await found_in(store) == []
    assert (await verified(store))[-1].erased_rows == 1
    store.tamper(f"UPDATE redemption_audit SET order_id = 'o' WHERE sequence = {number}")
    assert await found_in(store) == [("ROW_CHANGED", number)]


async def proved(store: SealedStore, event_id: UUID, until: int = 0) -> dict[str, object]:
    verifier = LedgerVerifier(store.lane)
    proof, last = await verifier.prove(event_id, "", until)
    head = await verifier.head()
    seal = last.seal
    return verify_inclusion(
        proof,
        Checkpoint(head.log_id, seal.number, last.chain, seal.last_sequence, seal.seal_time),
    )


async def test_each_event_is_proved(store: SealedStore) -> None:
    for sequence, event_id, order_id in store.rows(
        "SELECT sequence, event_id, order_id FROM redemption_audit"
    ):
        for until in (0, 6):
            values = await proved(store, event_id, until)
            assert (values["sequence"], values["event_id"]) == (sequence, event_id)
            assert values["order_id"] == order_id


async def test_what_cannot_be_proved_is_refused(store: SealedStore) -> None:
    verifier = LedgerVerifier(store.lane)
    ((first,),) = store.rows("SELECT event_id FROM redemption_audit WHERE sequence = 1")
    ((twelfth,),) = store.rows("SELECT event_id FROM redemption_audit WHERE sequence = 12")
    await store.write(some_events(1, seed=9))
    ((newest,),) = store.rows(
        "SELECT event_id FROM redemption_audit ORDER BY sequence DESC LIMIT 1"
    )
    with pytest.raises(EventNotFound):
        await verifier.prove(uuid4(), "", 0)
    with pytest.raises(EventNotFound):
        await verifier.prove(first, "another business", 0)
    with pytest.raises(EventNotSealed):
        await verifier.prove(newest, "", 0)
    for until in (1, 7):
        with pytest.raises(SealNotFound):
            await verifier.prove(twelfth, "", until)
    store.tamper("UPDATE redemption_audit SET discount_minor = 1 WHERE sequence = 1")
    with pytest.raises(LedgerChanged):
        await verifier.prove(first, "", 0)
    store.tamper("UPDATE coupon_audit_seals SET root = sha256(root) WHERE number = 2")
    with pytest.raises(LedgerChanged):
        await verifier.prove(twelfth, "", 0)


async def test_an_event_is_proved_to_its_business(store: SealedStore) -> None:
    book = await make_book(Books(store.database, Clock(), 60_000), business_id="bakery")
    await store.sealer.seal_all()
    ((event_id,),) = store.rows(
        "SELECT event_id FROM redemption_audit WHERE book_id = %s LIMIT 1", book.book_id
    )
    verifier = LedgerVerifier(store.lane)
    proof, last = await verifier.prove(event_id, "bakery", 0)
    assert proof.seal == last.seal
    with pytest.raises(EventNotFound):
        await verifier.prove(event_id, "butcher", 0)


async def test_a_neighbour_that_is_gone_does_not_take_a_proof_away(store: SealedStore) -> None:
    ((event_id,),) = store.rows("SELECT event_id FROM redemption_audit WHERE sequence = 12")
    store.tamper("DELETE FROM redemption_audit WHERE sequence = 13")
    assert (await proved(store, event_id))["sequence"] == 12


def test_faults_have_the_numbers_of_the_contract() -> None:
    from coupon_service.v1.audit_service_pb2 import AuditFault

    assert {f"AUDIT_FAULT_{it.name}": it.value for it in Fault} == {
        name: value for name, value in AuditFault.items() if value
    }
