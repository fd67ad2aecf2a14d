"""`coupon-service audit verify` and `audit checkpoint`, against a service that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import psycopg
import pytest
from support.command_line import run
from support.person import erase
from support.service import Api, ServerThread, audit, settings_for, unique
from support.waiting import until

from coupon_service.audit.checkpoints import Signer, read_checkpoint
from coupon_service.cli.audit_proofs import FAULTS


@dataclass(frozen=True)
class Sealed:
    """A service whose ledger has some rows, all of which are sealed."""

    address: str
    database_url: str
    folder: Path
    api: Api

    def audit(self, *arguments: str) -> CompletedProcess[str]:
        """`coupon-service audit` with these arguments."""
        return run(self.folder, "audit", *arguments, "--address", self.address)

    def write(self) -> None:
        """Adds rows, and waits for their seals."""
        self.api.code()
        self.wait()

    def wait(self) -> None:
        """Waits until all is sealed."""
        verify = audit.VerifyAuditRequest()
        until(lambda: [*self.api.audit.VerifyAudit(verify)][-1].unsealed_row_count == 0)

    def tamper(self, *statements: str) -> None:
        """As the owner of the database can."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute("SET session_replication_role = replica")
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture
def sealed(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str, tmp_path: Path
) -> Iterator[Sealed]:
    with new_database() as database_url:
        settings = settings_for(database_url, redis_url, seal_interval_ms=100)
        with ServerThread(settings) as running, closing(Api(running.address)) as api:
            made = Sealed(running.address, database_url, tmp_path, api)
            made.write()
            yield made


def test_untouched_ledger_is_what_was_sealed(sealed: Sealed) -> None:
    done = sealed.audit("verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 rows are not sealed yet" in done.stdout
    assert done.stdout.endswith("The ledger is what was sealed.\n")


def test_changed_row_is_named_and_the_code_is_1(sealed: Sealed) -> None:
    sealed.tamper("UPDATE redemption_audit SET caller = 'x' WHERE sequence = 2")
    ((event_id,),) = psycopg.connect(sealed.database_url).execute(
        "SELECT event_id FROM redemption_audit WHERE sequence = 2"
    )
    done = sealed.audit("verify")
    assert done.returncode == 1
    assert f"Row 2, event {event_id}, was changed." in done.stdout.splitlines()
    assert done.stderr == "The ledger is not what it was.\n"
    assert sealed.audit("verify", "--since", "2100-01-01").returncode == 0
    assert sealed.audit("verify", "--until", "2000-01-01").returncode == 0


def test_rewritten_ledger_is_found_against_a_checkpoint(sealed: Sealed) -> None:
    kept = sealed.folder / "kept"
    assert sealed.audit("checkpoint", str(kept)).returncode == 0
    sealed.write()
    assert sealed.audit("verify", "--against", str(kept)).returncode == 0
    assert sealed.audit("checkpoint", "--against", str(kept)).returncode == 0
    sealed.tamper(
        "UPDATE redemption_audit SET caller = 'x' WHERE sequence = 2",
        "DELETE FROM coupon_audit_seals",
        "UPDATE coupon_audit_head SET number = 0, last_sequence = 0, chain = NULL",
    )
    sealed.wait()
    assert sealed.audit("verify").returncode == 0
    for done in (
        sealed.audit("verify", "--against", str(kept)),
        sealed.audit("checkpoint", "--against", str(kept)),
    ):
        assert done.returncode == 1
        assert "The ledger is not the one of the checkpoint" in done.stdout + done.stderr


def test_ledger_is_what_was_sealed_when_users_were_erased(sealed: Sealed) -> None:
    api = sealed.api
    ann, bob, till = unique("ann"), unique("bob"), unique("carl")
    for user in (ann, till):
        code = api.assign_random(api.book(codes=2).book_id, user).assignment.code
        api.redeem(code, user, order_id=unique("order"), metadata={"note": "hers"})
    code = api.assign_random(api.book(codes=1).book_id, ann).assignment.code
    api.transfer(code, ann, bob)
    sealed.wait()
    for user in (ann, bob, till):
        erase(api, user)
        done = sealed.audit("verify")
        assert done.returncode == 0, done.stdout
    sealed.wait()
    done = sealed.audit("verify")
    assert done.returncode == 0, done.stdout
    assert "were erased in part" in done.stdout


def test_checkpoint_is_checked_with_the_key(sealed: Sealed) -> None:
    done = sealed.audit("checkpoint")
    key = done.stderr.removeprefix("Public key: ").strip()
    assert read_checkpoint(done.stdout).number >= 1
    kept = sealed.folder / "kept"
    kept.write_text(done.stdout, "utf-8")
    assert sealed.audit("verify", "--against", str(kept), "--key", key).returncode == 0
    another = Signer(b"another").public_key
    refused = sealed.audit("verify", "--against", str(kept), "--key", another)
    assert refused.returncode == 1
    assert "not signed with this key" in refused.stderr
    kept.write_text("no checkpoint", "utf-8")
    assert "no signature" in sealed.audit("verify", "--against", str(kept)).stderr
    missing = sealed.audit("verify", "--against", str(sealed.folder / "missing"))
    assert "cannot be read" in missing.stderr
    forgotten = sealed.audit("verify", "--key", key)
    assert (forgotten.returncode, forgotten.stdout) == (1, "")
    assert "--against" in forgotten.stderr


def test_checkpoint_that_cannot_be_kept_is_told(sealed: Sealed) -> None:
    done = sealed.audit("checkpoint", "no/folder/kept")
    assert done.returncode == 1
    assert "no/folder/kept cannot be written: No such file or directory." in done.stderr


def test_every_fault_has_a_sentence() -> None:
    assert FAULTS.keys() == {it for it in audit.AuditFault.values() if it}
