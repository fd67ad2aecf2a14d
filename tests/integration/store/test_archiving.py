"""A closed book is archived: verified, then deleted, and all that is asked of it has an answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from support.archives import (
    OF_BUSINESS,
    SOON,
    Stage,
    archivist,
    campaign,
    findings,
    map_uuids,
    verified,
)
from support.calls import redemption
from support.command_line import run
from support.person import erase
from support.sealed_now import seal_ledger
from support.service import (
    audit,
    books,
    codes,
    euros,
    new_codes,
    refused,
    unique,
)
from support.waiting import until

from coupon_service.audit.archive_files import ArchiveError
from coupon_service.audit.archive_proofs import verify_archive
from coupon_service.audit.checkpoints import Checkpoint, Signer
from coupon_service.audit.leaves import leaf_of, row_of
from coupon_service.audit.seals import unpack_leaves
from coupon_service.store.archiving import archive as archiving
from coupon_service.store.archiving import records
from coupon_service.store.archiving import restore as restoring
from coupon_service.store.archiving.records import CannotArchiveError
from coupon_service.store.archiving.restore import restore
from coupon_service.v1.error_reason_pb2 import ErrorReason


@pytest.fixture(scope="module")
def stage(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    with archivist(new_database, redis_server_url, tmp_path_factory.mktemp("archives")) as made:
        yield made


def test_an_archived_book_has_left_the_ledger_and_everything_adds_up(stage: Stage) -> None:
    kept, gone = campaign(stage.api), campaign(stage.api)
    before = stage.rows("SELECT count(*) FROM redemption_audit")
    (file,) = stage.archive(gone.book_id)
    of_book = f"SELECT count(*) FROM redemption_audit WHERE book_id = '{gone.book_id}'"
    assert stage.rows(f"{of_book} AND code IS NOT NULL") == [(0,)]
    assert stage.rows("SELECT count(*) FROM redemption_audit") < before
    with file.open("rb") as opened:
        verified = verify_archive(opened)
    assert verified.trailer.balance.redemptions == 3
    assert verified.trailer.balance.rollbacks == 1
    stage.adds_up()
    assert "BOOK_ARCHIVED" in stage.api.event_names(book_id=gone.book_id)
    assert redemption(stage.api, kept.adjusted).redemption_id == kept.adjusted


def test_what_is_asked_of_an_archived_redemption_is_answered_with_where_it_is(
    stage: Stage,
) -> None:
    gone = campaign(stage.api)
    (file,) = stage.archive(gone.book_id)
    before = stage.dump()
    for call in (
        lambda: redemption(stage.api, gone.adjusted),
        lambda: stage.api.rollback(gone.adjusted),
        lambda: stage.api.rollback(gone.rolled_back),
        lambda: stage.api.adjust(gone.adjusted, euros(1_000)),
        lambda: stage.api.redeem(*gone.redeemed[0][:2], **gone.redeemed[0][2]),
        lambda: stage.api.redeem(*gone.redeemed[3][:2], **gone.redeemed[3][2]),
    ):
        with refused("ARCHIVED") as refusal:
            call()
        assert refusal.metadata == {"archive": file.name}
    assert stage.dump() == before
    stage.adds_up()


BUDGET = books.BookLimits(max_redemptions=9, max_discount_minor=99_999)
ONCE_A_DAY = books.PeriodLimits(
    period=books.PERIOD_DAY, time_zone="UTC", max_redemptions=9, max_redemptions_per_user=9
)
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "limits a user": {},
    "orders": {"order_policy": books.ORDER_POLICY_COMBINABLE},
    "budget": {"limits": BUDGET},
    "periods": {"period_limits": ONCE_A_DAY},
}


@pytest.mark.parametrize("fields", CAMPAIGNS.values(), ids=CAMPAIGNS)
def test_a_restored_ledger_is_the_one_that_was_archived(
    stage: Stage, fields: dict[str, Any]
) -> None:
    gone = campaign(stage.api, **fields)
    seal_ledger(stage.url)
    before = stage.dump()
    (file,) = stage.archive(gone.book_id)
    stage.adds_up()
    assert stage.dump() != before
    stage.restore(file)
    assert stage.dump() == before
    stage.restore(file)
    assert stage.dump() == before
    stage.adds_up()
    answer = stage.api.redeem(*gone.redeemed[1][:2], **gone.redeemed[1][2])
    assert answer.replayed
    with refused("ALREADY_ROLLED_BACK"):
        stage.api.redeem(*gone.redeemed[0][:2], **gone.redeemed[0][2])
    (again,) = stage.archive(gone.book_id)
    assert again.name != file.name
    stage.adds_up()


class CutOffError(Exception):
    """The process was killed."""


@pytest.mark.parametrize("step", ["written", "verified", "deleted"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_archive_that_was_cut_off_is_gone_on_with(
    stage: Stage, step: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "CHUNK", 1)
    gone = campaign(stage.api)
    seal_ledger(stage.url, rows_of_seal=3)
    before = stage.dump()
    seen = 0

    def report(what: str, _done: int, _count: int) -> None:
        nonlocal seen
        seen += what == step
        if what == step and seen == nth:
            raise CutOffError

    with pytest.raises(CutOffError):
        stage.archive(gone.book_id, report=report)
    stage.adds_up()
    with refused("ARCHIVED" if step == "deleted" else "ALREADY_ROLLED_BACK"):
        stage.api.redeem(*gone.redeemed[0][:2], **gone.redeemed[0][2])
    (file,) = stage.archive(gone.book_id)
    stage.adds_up()
    for _, _, _, redemption_id in gone.redeemed:
        with refused("ARCHIVED"):
            redemption(stage.api, redemption_id)
    stage.restore(file)
    assert stage.dump() == before


def test_a_file_that_was_changed_is_neither_used_for_a_deletion_nor_restored(
    stage: Stage,
) -> None:
    gone = campaign(stage.api)

    def report(what: str, _done: int, _count: int) -> None:
        if what == "deleted":
            raise CutOffError

    with pytest.raises(CutOffError):
        stage.archive(gone.book_id, report=report)
    (file,) = stage.folder.glob(f"{gone.book_id}-*.archive")
    content = file.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    file.write_bytes(bytes(changed))
    with file.open("rb") as opened, pytest.raises(ArchiveError):
        verify_archive(opened)
    with pytest.raises(CannotArchiveError, match=r"damaged|not what was written"):
        stage.archive(gone.book_id)
    file.unlink()
    with pytest.raises(CannotArchiveError, match="needed to go on"):
        stage.archive(gone.book_id)
    file.write_bytes(content)
    stage.archive(gone.book_id)
    file.write_bytes(bytes(changed))
    with pytest.raises(CannotArchiveError):
        stage.restore(file)
    stage.adds_up()


def test_a_file_that_is_lost_before_anything_was_deleted_is_written_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = campaign(stage.api)

    def cut_off(_: object) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(archiving, "wait_for_others", cut_off)
        with pytest.raises(CutOffError):
            stage.archive(gone.book_id)
    (lost,) = stage.folder.glob(f"{gone.book_id}-*.archive")
    lost.unlink()
    assert stage.archive(gone.book_id) == [lost]
    stage.adds_up()
    stage.restore(lost)
    stage.adds_up()


def test_a_file_whose_events_a_later_one_has_says_so(stage: Stage) -> None:
    gone = campaign(stage.api)
    (before,) = stage.archive(gone.book_id)
    stage.restore(before)
    stage.restore(before)
    (later,) = stage.archive(gone.book_id)
    with pytest.raises(CannotArchiveError, match=later.name):
        stage.restore(before)
    stage.restore(later)
    stage.adds_up()


def test_what_is_in_the_way_of_one_book_keeps_no_other_from_being_archived(
    stage: Stage, tmp_path: Path
) -> None:
    lost, gone = campaign(stage.api), campaign(stage.api)

    def report(what: str, _done: int, _count: int) -> None:
        if what == "deleted":
            raise CutOffError

    with pytest.raises(CutOffError):
        stage.archive(lost.book_id, report=report)
    (file,) = stage.folder.glob(f"{lost.book_id}-*.archive")
    file.rename(tmp_path / file.name)
    seal_ledger(stage.url)
    wanted = [str(stage.folder), "--older-than-days", "0", "--book", gone.book_id]
    done = run(tmp_path, "audit", "archive", *wanted, DATABASE_URL=stage.url)
    assert done.returncode == 1
    assert f"Book {lost.book_id} is not archived: {file.name} is not in " in done.stderr
    assert gone.book_id in done.stdout
    with refused("ARCHIVED"):
        redemption(stage.api, gone.adjusted)
    (tmp_path / file.name).rename(file)
    stage.archive()
    stage.adds_up()


def test_redemptions_that_are_on_their_way_to_an_archive_are_not_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = campaign(stage.api)

    def cut_off(_: object) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(archiving, "wait_for_others", cut_off)
        with pytest.raises(CutOffError):
            stage.archive(gone.book_id)
    assert redemption(stage.api, gone.adjusted).redemption_id == gone.adjusted
    for call in (
        lambda: stage.api.rollback(gone.adjusted),
        lambda: stage.api.adjust(gone.adjusted, euros(1_000)),
    ):
        with refused("ARCHIVED"):
            call()
    assert len(stage.archive(gone.book_id)) == 1
    stage.adds_up()


def test_a_roll_back_that_was_under_way_is_archived_as_well(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = campaign(stage.api)
    mark = "UPDATE coupon_books SET archived_until = %s WHERE book_id = %s"

    def roll_back(connection: Any) -> None:
        """As one that has read the book before it was marked."""
        connection.execute(mark, [None, gone.book_id])
        stage.api.rollback(gone.adjusted)

    with monkeypatch.context() as patch:
        patch.setattr(archiving, "wait_for_others", roll_back)
        with pytest.raises(CannotArchiveError, match="meanwhile"):
            stage.archive(gone.book_id)
    stage.adds_up()
    (file,) = stage.archive(gone.book_id)
    with file.open("rb") as opened:
        assert verify_archive(opened).trailer.balance.rollbacks == 2
    stage.adds_up()


def test_archiving_waits_for_what_was_begun_before(stage: Stage) -> None:
    gone = campaign(stage.api)
    state = f"SELECT state FROM coupon_audit_archives WHERE book_id = '{gone.book_id}'"
    files: list[Path] = []
    with psycopg.connect(stage.url) as connection:
        connection.execute("SELECT pg_current_xact_id()")
        thread = Thread(target=lambda: files.extend(stage.archive(gone.book_id)))
        thread.start()
        until(lambda: stage.rows(state) == [(2,)])
        assert thread.is_alive()
    thread.join()
    assert len(files) == 1
    assert stage.rows(state) == [(4,)]


def test_an_erased_user_is_erased_from_archives(stage: Stage) -> None:
    gone = campaign(stage.api)
    (file,) = stage.archive(gone.book_id)
    named = {user for _, user, _, _ in gone.redeemed}
    assert {it for (it,) in stage.rows("SELECT user_id FROM coupon_user_keys")} > named
    erased = [erase(stage.api, user)[-1].erasure for user in sorted(named)]
    assert {it.state for it in erased} == {audit.ERASURE_STATE_ERASED}
    bearers = stage.rows("SELECT user_id FROM coupon_archived_assignments")
    assert named.isdisjoint(it for (it,) in bearers)
    with file.open("rb") as opened:
        assert verify_archive(opened).trailer.row_count
    with refused("ARCHIVED"):
        redemption(stage.api, gone.adjusted)
    stage.restore(file)
    found = redemption(stage.api, gone.adjusted)
    assert found.user_id.startswith("erased-")
    assert found.user_id in {it.pseudonym for it in erased}
    assert (found.order_id, found.order_amount) == ("", euros(3_000))
    with psycopg.connect(stage.url) as connection, connection.cursor(row_factory=dict_row) as it:
        query = "SELECT *, metadata::text AS metadata FROM redemption_audit WHERE event_id = %s"
        (row,) = it.execute(query, [gone.adjusted]).fetchall()
    leaf = leaf_of(row_of(row, row["commitments"]), {})
    (packed,) = stage.rows(
        "SELECT first_sequence, leaves FROM coupon_audit_seals"
        f" WHERE last_sequence >= {row['sequence']} ORDER BY last_sequence LIMIT 1"
    )
    assert (row["sequence"], leaf) in unpack_leaves(*packed)
    stage.adds_up()


def test_the_ledger_is_verified_although_some_of_it_is_archived(stage: Stage) -> None:
    kept, gone = campaign(stage.api), campaign(stage.api)
    file = stage.archive(gone.book_id)[0]
    *_, last = verified(stage.api)
    assert last.archived_row_count >= last_count(file)
    assert findings(stage.api) == []
    delete = f"DELETE FROM redemption_audit WHERE event_id = '{kept.adjusted}' RETURNING *"
    with psycopg.connect(stage.url) as connection:
        connection.execute("SET session_replication_role = replica")
        ((*row,),) = connection.execute(f"{delete}, metadata::text".encode()).fetchall()
        connection.commit()
        assert [it.fault for it in findings(stage.api)] == [audit.AUDIT_FAULT_ROW_MISSING]
        insert = f"INSERT INTO redemption_audit VALUES ({', '.join(['%s'] * (len(row) - 1))})"
        connection.execute(insert.encode(), row[:-1])
    assert findings(stage.api) == []
    wanted = audit.GetAuditProofRequest(event_id=gone.adjusted)
    with refused("ARCHIVED"):
        stage.api.audit.GetAuditProof(wanted)
    stage.restore(file)
    assert findings(stage.api) == []
    assert stage.api.audit.GetAuditProof(wanted).facts


def last_count(file: Path) -> int:
    with file.open("rb") as opened:
        return verify_archive(opened).trailer.row_count


def test_who_is_erased_while_an_archive_is_restored_does_not_come_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "CHUNK", 1)
    gone = campaign(stage.api)
    seal_ledger(stage.url, rows_of_seal=1)
    (file,) = stage.archive(gone.book_id)
    named = [user for _, user, _, _ in gone.redeemed]
    waiting = [*named]

    def report(what: str, _done: int, _count: int) -> None:
        while what == "restored" and waiting:
            erase(stage.api, waiting.pop())

    with file.open("rb") as opened:
        restore(stage.url, opened, report)
    assert waiting == []
    users = "SELECT user_id FROM redemption_audit UNION SELECT user_id FROM coupon_assignments"
    assert {it for (it,) in stage.rows(users)}.isdisjoint(named)
    stage.adds_up()
    assert findings(stage.api) == []


def test_who_is_erased_while_events_are_deleted_is_in_no_assignment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "CHUNK", 1)
    gone = campaign(stage.api)
    seal_ledger(stage.url, rows_of_seal=1)
    named = [user for _, user, _, _ in gone.redeemed]
    waiting = [*reversed(named)]

    def report(what: str, done: int, _count: int) -> None:
        while what == "deleted" and done > 10 and waiting:
            erase(stage.api, waiting.pop())

    (file,) = stage.archive(gone.book_id, report=report)
    assert waiting == []
    of_bearers = "SELECT user_id FROM coupon_archived_assignments"
    users = f"SELECT user_id FROM coupon_assignments UNION {of_bearers}"
    assert {it for (it,) in stage.rows(users)}.isdisjoint(named)
    stage.adds_up()
    stage.restore(file)
    stage.adds_up()


def test_assignments_are_not_restored_while_a_user_is_being_erased(stage: Stage) -> None:
    gone = campaign(stage.api)
    (file,) = stage.archive(gone.book_id)
    erasing = "INSERT INTO coupon_erased_users (pseudonym, state, begin_time) VALUES (%s, 2, now())"
    pseudonym = f"erased-{'a' * 32}"
    with psycopg.connect(stage.url, autocommit=True) as connection:
        connection.execute(erasing, [pseudonym])
        with pytest.raises(CannotArchiveError, match="being erased"):
            stage.restore(file)
        connection.execute("DELETE FROM coupon_erased_users WHERE pseudonym = %s", [pseudonym])
    stage.restore(file)
    stage.adds_up()


def test_a_user_is_erased_whose_events_an_archive_has_just_taken(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, user = new_codes(1)[0], unique("user")
    optional = books.LOCK_POLICY_OPTIONAL
    book_id = stage.api.book(codes=[code], lock_policy=optional, **OF_BUSINESS).book_id
    stage.api.unlock(stage.api.lock(code, user).lock_token)
    stage.api.close_book(book_id)
    delete = records.delete_archived
    erasing = Thread(target=erase, args=(stage.api, user))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"

    def erase_meanwhile(*given: Any) -> int:
        """The ledger has the events until this transaction is committed."""
        deleted = delete(*given)
        if not erasing.ident:
            erasing.start()
            until(lambda: stage.rows(waiting) != [(0,)])
        return deleted

    monkeypatch.setattr(records, "delete_archived", erase_meanwhile)
    assert stage.archive(book_id)
    erasing.join()
    assert stage.rows(f"SELECT FROM coupon_user_keys WHERE user_id = '{user}'") == []
    stage.adds_up()


def test_codes_of_an_archived_book_are_not_deleted(stage: Stage) -> None:
    gone = campaign(stage.api)
    request = codes.ChangeCodesRequest(
        book_id=gone.book_id,
        change=codes.CODE_CHANGE_DELETE,
        request_id=unique("request"),
        list=codes.CodeList(codes=gone.names),
    )
    stage.archive(gone.book_id)
    answers = list(stage.api.codes.ChangeCodes(request))
    refusals = [it.error.reason for answer in answers for it in answer.refused]
    assert refusals == [ErrorReason.ERROR_REASON_CODE_HAS_HISTORY] * len(gone.names)


@pytest.mark.parametrize("archived_first", [True, False], ids=["archived", "reused"])
def test_a_repeat_is_not_carried_out_in_the_book_that_has_the_code_now(
    stage: Stage, archived_first: bool
) -> None:
    gone = campaign(stage.api)
    if archived_first:
        stage.archive(gone.book_id)
    later = stage.api.book(codes=gone.names[:4], **OF_BUSINESS)
    if not archived_first:
        stage.archive(gone.book_id)
    for code, user, wish, _ in gone.redeemed:
        assert stage.api.get_code(code).book_id == later.book_id
        with refused("ARCHIVED"):
            stage.api.redeem(code, user, **wish)
    assert stage.api.stats(later.book_id).redemption_count == 0
    code, user, _, _ = gone.redeemed[0]
    assert stage.api.redeem(code, user).redemption.book_id == later.book_id
    stage.api.close_book(later.book_id)
    last = stage.api.book(codes=gone.names[1:2], **OF_BUSINESS)
    code, user, wish, _ = gone.redeemed[1]
    with refused("ARCHIVED"):
        stage.api.redeem(code, user, **wish)
    assert stage.api.stats(last.book_id).redemption_count == 0
    stage.adds_up()


def test_the_commands_archive_verify_and_restore(stage: Stage, tmp_path: Path) -> None:
    gone = campaign(stage.api)
    seal_ledger(stage.url)

    def audit(*arguments: str) -> tuple[int, str]:
        done = run(tmp_path, "audit", *arguments, DATABASE_URL=stage.url)
        return done.returncode, done.stdout + done.stderr

    wanted = (str(tmp_path), "--older-than-days", "0", "--book", gone.book_id)
    code, said = audit("archive", *wanted[:-1], str(UUID(int=0)))
    assert (code, said.startswith(f"Book {UUID(int=0)} has nothing to archive")) == (0, True)
    code, said = audit("archive", *wanted, "--dry-run")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert "would be archived: " in said
    code, said = audit("archive", *wanted)
    assert code == 0
    (file,) = tmp_path.iterdir()
    assert f"{file}: " in said
    code, said = audit("verify-archive", str(file), "--event", gone.adjusted)
    assert code == 0
    assert "It is what was sealed." in said
    assert f"event_id {gone.adjusted}" in said
    ((log_id, number, chain, last_sequence),) = stage.rows(
        "SELECT log_id, number, chain, last_sequence FROM coupon_audit_head"
    )
    kept = Checkpoint(log_id, number, chain, last_sequence, datetime.now(UTC))
    note = tmp_path / "checkpoint"
    note.write_text(Signer(b"secret").sign(kept))
    key = ("--checkpoint", str(note), "--public-key", Signer(b"secret").public_key)
    code, said = audit("verify-archive", str(file), *key)
    assert (code, said.splitlines()[-1][-32:]) == (0, "chain is that of the checkpoint.")
    code, said = audit("verify-archive", str(file), *key[2:])
    assert (code, "--checkpoint" in said) == (1, True)
    code, said = audit("verify-archive", str(file), "--checkpoint", str(file))
    assert (code, said.startswith(f"{file} cannot be read: ")) == (1, True)
    code, said = audit("restore", str(file))
    assert (code, said.splitlines()[-1][-10:]) == (0, " restored.")
    assert redemption(stage.api, gone.adjusted).redemption_id == gone.adjusted
    file.write_bytes(file.read_bytes()[:-1])
    code, said = audit("verify-archive", str(file))
    assert code == 1
    assert "is not what was written" in said
    assert audit("archive", str(tmp_path)) == (
        1,
        "Give either --closed-before or --older-than-days.\n",
    )


def test_a_full_disk_is_told_with_the_folder(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = campaign(stage.api)
    seal_ledger(stage.url)
    wanted = ("audit", "archive", str(stage.folder), "--older-than-days", "0")

    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(archiving.ArchiveWriter, "end", is_full)
        done = run(tmp_path, *wanted, DATABASE_URL=stage.url)
    assert done.returncode == 1
    assert f"{stage.folder} cannot be used: No space left on device." in done.stderr
    assert redemption(stage.api, gone.adjusted).redemption_id == gone.adjusted
    assert run(tmp_path, *wanted, DATABASE_URL=stage.url).returncode == 0
    with refused("ARCHIVED"):
        redemption(stage.api, gone.adjusted)
    stage.adds_up()


def test_nothing_is_archived_that_was_changed_since_it_was_sealed(stage: Stage) -> None:
    gone = campaign(stage.api)
    seal_ledger(stage.url)
    change = f"""
        ALTER TABLE redemption_audit DISABLE TRIGGER USER;
        UPDATE redemption_audit SET discount_minor = discount_minor + %s
        WHERE event_id = '{gone.adjusted}';
        ALTER TABLE redemption_audit ENABLE TRIGGER USER;
    """
    with psycopg.connect(stage.url) as connection:
        connection.execute((change % 1).encode())
    with pytest.raises(CannotArchiveError, match="not as it was sealed"):
        stage.archive(gone.book_id)
    with psycopg.connect(stage.url) as connection:
        connection.execute((change % -1).encode())
    assert len(stage.archive(gone.book_id)) == 1


def test_the_ledger_deletes_only_what_a_verified_archive_has(stage: Stage) -> None:
    gone = campaign(stage.api)
    seal_ledger(stage.url)
    delete = f"DELETE FROM redemption_audit WHERE book_id = '{gone.book_id}'"
    claim = f"""
        INSERT INTO coupon_archived_events
        SELECT event_id, 7000, type FROM redemption_audit WHERE book_id = '{gone.book_id}'
    """
    with psycopg.connect(stage.url) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(delete.encode())
        connection.execute(claim.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(delete.encode())
        connection.rollback()


def test_an_opening_balance_that_was_changed_does_not_add_up(stage: Stage) -> None:
    gone = campaign(stage.api)
    stage.archive(gone.book_id)
    stage.adds_up()
    for table in ("coupon_archived_codes", "coupon_audit_archives"):
        change = f"UPDATE {table} SET redemptions = redemptions + %s WHERE book_id = %s"
        with psycopg.connect(stage.url) as connection:
            connection.execute(change.encode(), [1, gone.book_id])
        with pytest.raises(AssertionError, match="broken"):
            stage.adds_up()
        with psycopg.connect(stage.url) as connection:
            connection.execute(change.encode(), [-1, gone.book_id])
    stage.adds_up()


def test_books_that_cannot_be_archived_are_said_to_be(stage: Stage) -> None:
    active = stage.api.book(codes=2, **OF_BUSINESS)
    gone = campaign(stage.api)
    soon = datetime.now(UTC) + SOON
    wanted = map_uuids([active.book_id, gone.book_id])
    (planned,) = archiving.plan(stage.url, soon, wanted)
    assert "not sealed yet" in planned.why_not
    seal_ledger(stage.url)
    (planned,) = archiving.plan(stage.url, soon, wanted)
    assert (str(planned.book.book_id), planned.why_not) == (gone.book_id, "")
    assert archiving.plan(stage.url, soon - timedelta(days=1), wanted) == []
