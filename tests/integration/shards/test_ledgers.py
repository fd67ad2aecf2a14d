"""Each shard has a ledger, seals and archives of its own, which say of which shard they are."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr
from support.calls import redemption
from support.command_line import run
from support.service import Api, ServerThread, audit, new_codes, refused, settings_for
from support.shards import business_in, shard_roles
from support.waiting import until

from coupon_service.audit.checkpoints import NotVerifiedError, read_checkpoint, split_notes
from coupon_service.client import verify_audit_proof
from coupon_service.store.placement import MAKE_PLACES, Forward, address_of, write_forward

OF = 4
SCHEMAS = [f"coupon_{it:02}" for it in range(OF)]


@pytest.fixture(scope="module")
def sealing(sharded_database: str, redis_server_url: str) -> Iterator[ServerThread]:
    """A server that seals what is written at once."""
    with shard_roles(sharded_database, of=OF) as urls:
        settings = settings_for(
            sharded_database,
            redis_server_url,
            shards=OF,
            shard_urls=SecretStr(urls),
            default_business="",
            seal_interval_ms=100,
        )
        with ServerThread(settings, owner_url=sharded_database) as running:
            yield running


@dataclass(frozen=True)
class Sealed:
    """A client, and of each shard a business with a redemption that is sealed."""

    api: Api
    businesses: list[str]
    redemptions: list[str]


@pytest.fixture(scope="module")
def sealed(sealing: ServerThread) -> Iterator[Sealed]:
    made = Sealed(Api(sealing.address), [business_in(it, OF) for it in range(OF)], [])
    for business_id, code in zip(made.businesses, new_codes(OF), strict=True):
        made.api.book(codes=[code], business_id=business_id)
        redeemed = made.api.redeem(code, "ann", business_id=business_id)
        made.redemptions.append(redeemed.redemption.redemption_id)
    wait(made.api)
    yield made
    made.api.close()


@pytest.fixture
def api(sealed: Sealed) -> Api:
    return sealed.api


def verified(api: Api, **fields: Any) -> list[audit.VerifyAuditResponse]:
    return list(api.audit.VerifyAudit(audit.VerifyAuditRequest(**fields)))


def findings(api: Api, **fields: Any) -> list[tuple[str, int]]:
    """In which shard something is wrong, and what."""
    return [(it.shard, it.fault) for each in verified(api, **fields) for it in each.findings]


def wait(api: Api) -> None:
    """Until all is sealed."""
    until(lambda: verified(api)[-1].unsealed_row_count == 0)


def checkpoint(api: Api, **fields: Any) -> str:
    return api.audit.GetAuditCheckpoint(audit.GetAuditCheckpointRequest(**fields)).checkpoint


def tamper(server: ServerThread, shard: str, *statements: str) -> None:
    """As the owner of the database can."""
    with psycopg.connect(server.database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"SET search_path = {shard}".encode())
        for statement in statements:
            connection.execute(statement.encode())


@contextmanager
def changed(server: ServerThread, shard: str) -> Generator[None]:
    """The first row of the ledger of a shard is another one meanwhile."""
    row = "WHERE sequence = (SELECT min(sequence) FROM redemption_audit)"
    tamper(server, shard, f"UPDATE redemption_audit SET caller = caller || 'x' {row}")
    yield
    tamper(server, shard, f"UPDATE redemption_audit SET caller = left(caller, -1) {row}")


class TestVerifyAudit:
    def test_ledgers_are_compared_one_after_the_other(self, api: Api, sealed: Sealed) -> None:
        messages = verified(api)
        told = [it.shard for it in messages]
        assert sorted(set(told)) == SCHEMAS
        assert told == sorted(told)
        assert [it.done for it in messages] == [False] * (len(messages) - 1) + [True]
        rows = [it.row_count for it in messages]
        assert rows == sorted(rows)
        of_each = [verified(api, shard=it)[-1] for it in SCHEMAS]
        assert rows[-1] == sum(it.row_count for it in of_each)
        assert messages[-1].seal_count == sum(it.seal_count for it in of_each)
        assert messages[-1].checkpoint == "".join(it.checkpoint for it in of_each)
        for business_id, alone in zip(sealed.businesses, of_each, strict=True):
            assert verified(api, business_id=business_id)[-1] == alone

    def test_what_is_wrong_says_in_which_shard(self, api: Api, sealing: ServerThread) -> None:
        assert not findings(api)
        with changed(sealing, "coupon_02"), changed(sealing, "coupon_03"):
            row_changed = audit.AUDIT_FAULT_ROW_CHANGED
            assert findings(api) == [("coupon_02", row_changed), ("coupon_03", row_changed)]
            assert findings(api, shard="coupon_02") == [("coupon_02", row_changed)]
            assert not findings(api, shard="coupon_01")
        assert not findings(api)


class TestGetAuditProof:
    def test_event_is_proved_by_the_checkpoint_of_its_shard(self, api: Api, sealed: Sealed) -> None:
        notes = split_notes(checkpoint(api))
        kept = {read_checkpoint(it).shard: it for it in notes}
        for shard, redemption_id in zip(SCHEMAS, sealed.redemptions, strict=True):
            proof = api.audit.GetAuditProof(
                audit.GetAuditProofRequest(
                    event_id=redemption_id, checkpoint_number=read_checkpoint(kept[shard]).number
                )
            )
            for note in (proof.checkpoint, kept[shard], "".join(notes)):
                values = verify_audit_proof(proof, proof.public_key, note)
                assert str(values["event_id"]) == redemption_id
            assert read_checkpoint(proof.checkpoint) == read_checkpoint(kept[shard])
            for other in kept.keys() - {shard}:
                with pytest.raises(NotVerifiedError, match="not in the checkpoint"):
                    verify_audit_proof(proof, proof.public_key, kept[other])

    def test_event_whose_id_leads_to_no_shard_is_found(self, api: Api, sealed: Sealed) -> None:
        for shard, business_id in zip(SCHEMAS, sealed.businesses, strict=True):
            (created,) = api.events(
                business_id=business_id, types=[audit.AUDIT_EVENT_TYPE_BOOK_CREATED]
            )
            request = audit.GetAuditProofRequest(event_id=created.event_id)
            proof = api.audit.GetAuditProof(request)
            assert verify_audit_proof(proof, proof.public_key)["sequence"] == created.sequence
            assert read_checkpoint(proof.checkpoint).shard == shard
        with refused("EVENT_NOT_FOUND"):
            api.audit.GetAuditProof(audit.GetAuditProofRequest(event_id=str(uuid4())))


class TestGetAuditCheckpoint:
    def test_it_is_of_all_shards_or_of_one(self, api: Api, sealed: Sealed) -> None:
        notes = split_notes(checkpoint(api))
        assert [read_checkpoint(it).shard for it in notes] == SCHEMAS
        for shard, business_id, note in zip(SCHEMAS, sealed.businesses, notes, strict=True):
            assert checkpoint(api, shard=shard) == note
            assert checkpoint(api, business_id=business_id) == note
            assert read_checkpoint(checkpoint(api, shard=shard, number=1)).number == 1

    def test_a_shard_that_is_none_or_not_that_of_the_business_is_refused(
        self, api: Api, sealed: Sealed
    ) -> None:
        for fields, bad in (
            ({"number": 1}, "number"),
            ({"shard": "coupon_04"}, "shard"),
            ({"shard": "coupon_01", "business_id": sealed.businesses[0]}, "shard"),
        ):
            with refused("INVALID_ARGUMENT") as it:
                checkpoint(api, **fields)
            assert it.fields == [bad]


class TestArchives:
    """`coupon-service audit archive`, `verify-archive` and `restore`."""

    def closed(self, sealed: Sealed, shard: int) -> tuple[str, str]:
        """A closed book, and its redemption, all sealed."""
        api, (code,) = sealed.api, new_codes(1)
        book_id = api.book(codes=[code], business_id=sealed.businesses[shard]).book_id
        redeemed = api.redeem(code, "ann", book_id=book_id).redemption.redemption_id
        api.close_book(book_id)
        wait(api)
        return book_id, redeemed

    def test_books_of_all_shards_are_archived_and_restored_into_their_own(
        self, sealed: Sealed, sealing: ServerThread, tmp_path: Path
    ) -> None:
        api = sealed.api
        made = [self.closed(sealed, it) for it in (0, 3)]
        kept, folder = tmp_path / "kept", tmp_path / "archives"
        folder.mkdir()
        kept.write_text(checkpoint(api), "utf-8")
        url = sealing.database_url
        archive = ("archive", str(folder), "--older-than-days", "0")
        code, told, _ = owner_command(tmp_path, url, *archive, "--dry-run", "--shard", "coupon_03")
        assert (code, [it.split(":")[0] for it in told.splitlines()]) == (0, ["coupon_03"])
        assert owner_command(tmp_path, url, *archive)[0] == 0
        files = [next(folder.glob(f"{book_id}-*.archive")) for book_id, _ in made]
        for file, (_, redeemed) in zip(files, made, strict=True):
            with refused("ARCHIVED") as it:
                redemption(api, redeemed)
            assert it.metadata == {"archive": file.name}
        assert not findings(api)
        against = ("verify-archive", str(files[1]), "--checkpoint", str(kept))
        assert owner_command(tmp_path, url, *against)[0] == 0
        assert owner_command(tmp_path, url, "restore", str(files[1]))[0] == 0
        assert redemption(api, made[1][1]).redemption_id == made[1][1]
        with refused("ARCHIVED"):
            redemption(api, made[0][1])
        assert not findings(api)

    def test_shard_that_cannot_be_reached_keeps_no_other_from_being_archived(
        self,
        sealed: Sealed,
        sealing: ServerThread,
        tmp_path: Path,
        empty_database_url: str,
    ) -> None:
        made = [self.closed(sealed, it) for it in (1, 2)]
        books = [option for book_id, _ in made for option in ("--book", book_id)]
        archive = ("archive", str(tmp_path), "--older-than-days", "0", *books)
        url = sealing.database_url
        code, _, told = owner_command(
            tmp_path, url, *archive, COUPON_SHARD_URLS=f"{url},postgresql://nobody@127.0.0.1:1/none"
        )
        assert code == 1
        assert [it.split(":")[0] for it in told.splitlines()] == ["coupon_02"]
        assert [it.name[:36] for it in tmp_path.glob("*.archive")] == [made[0][0]]
        # Those of the first URL were moved to the second.
        with psycopg.connect(empty_database_url) as connection:
            connection.execute(MAKE_PLACES)
            for schema in SCHEMAS[:2]:
                write_forward(connection, schema, Forward(1, address_of(url), "token"))
        urls = f"{empty_database_url},{url}"
        for option in (archive, ("restore", str(next(tmp_path.glob(f"{made[0][0]}-*.archive"))))):
            assert owner_command(tmp_path, url, *option, COUPON_SHARD_URLS=urls)[0] == 0
        assert redemption(sealed.api, made[0][1]).redemption_id == made[0][1]
        with refused("ARCHIVED"):
            redemption(sealed.api, made[1][1])


@pytest.mark.usefixtures("sealed")
def test_ledger_of_a_shard_that_was_rewritten_is_found_against_its_checkpoint(
    api: Api, sealing: ServerThread, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    assert audit_command(sealing, tmp_path, "checkpoint", str(kept))[0] == 0
    tamper(
        sealing,
        "coupon_01",
        "UPDATE redemption_audit SET caller = 'x'",
        "DELETE FROM coupon_audit_seals",
        "UPDATE coupon_audit_head SET number = 0, last_sequence = 0, chain = NULL",
    )
    wait(api)
    code, told = audit_command(sealing, tmp_path, "verify", "--against", str(kept))
    assert code == 1
    found = [it for it in told.splitlines() if "checkpoint" in it]
    assert [it.split(":")[0] for it in found] == ["coupon_01"]
    assert " in all shards; 0 rows are not sealed yet." in told
    of_other = ("verify", "--shard", "coupon_03", "--against", str(kept))
    code, told = audit_command(sealing, tmp_path, *of_other)
    assert (code, told.splitlines()[-1]) == (0, "The ledger is what was sealed.")


def audit_command(server: ServerThread, folder: Path, *arguments: str) -> tuple[int, str]:
    """`coupon-service audit` with these arguments: its code and output."""
    done = run(folder, "audit", *arguments, "--address", server.address)
    return done.returncode, done.stdout


def owner_command(
    folder: Path, url: str, *arguments: str, **variables: Any
) -> tuple[int, str, str]:
    """`coupon-service audit` on the database: its code, output and errors."""
    done = run(folder, "audit", *arguments, DATABASE_URL=url, COUPON_SHARDS=str(OF), **variables)
    return done.returncode, done.stdout, done.stderr.strip()
