"""`coupon-service generate`, `import` and `export`, against a real server."""

from __future__ import annotations

import csv
import signal
import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg
import pytest
from support.command_line import descendants, run, running
from support.invariants import assert_adds_up
from support.service import Api, new_codes
from support.waiting import until

from coupon_service.embedded.machine import free_port

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(server_address: str, tmp_path: Path) -> Command:
    """Run a command against the shared server, in a folder of the test's own."""

    def command(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        return run(tmp_path, *arguments, "--address", server_address, stdin=stdin)

    return command


class TestGenerate:
    def test_as_many_codes_are_made_as_were_asked_for(self, api: Api, command: Command) -> None:
        book = api.draft()
        done = command("generate", book.book_id, "1234")
        assert (done.returncode, done.stdout) == (0, "1,234 codes generated.\n")
        assert api.stats(book.book_id).code_count == 1_234

    def test_the_same_request_id_makes_them_once(self, api: Api, command: Command) -> None:
        book = api.draft()
        for _ in range(2):
            done = command("generate", book.book_id, "20", "--request-id", "mine")
            assert (done.returncode, done.stdout) == (0, "20 codes generated.\n")
        assert api.stats(book.book_id).code_count == 20

    def test_a_refusal_is_explained(self, api: Api, command: Command) -> None:
        book = api.draft(code_format={"length": 4, "alphabet": "AB"})
        done = command("generate", book.book_id, "1000")
        assert done.returncode == 1
        assert "CODE_SPACE_EXHAUSTED" in done.stderr


class TestExport:
    def test_what_was_imported_is_exported_one_a_line(self, api: Api, command: Command) -> None:
        codes = new_codes(2_500)
        book = api.book(codes=codes)
        done = command("export", book.book_id)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(done.stdout.splitlines()) == codes

    def test_codes_are_exported_in_the_spelling_that_was_uploaded(
        self, api: Api, command: Command
    ) -> None:
        (stem,) = new_codes(1)
        rows = [f"{stem}-summer 25%", f"{stem}-Grüße", f"{stem}PLAIN"]
        book = api.book(codes=rows)
        done = command("export", book.book_id)
        assert sorted(done.stdout.splitlines()) == sorted(rows)

    def test_codes_are_exported_by_their_state_and_with_all_that_is_known(
        self, api: Api, command: Command, tmp_path: Path
    ) -> None:
        codes = new_codes(3)
        book = api.book(codes=codes)
        api.redeem(codes[1], "ann")
        done = command("export", book.book_id, "out.csv", "--csv", "--state", "redeemed")
        assert (done.returncode, done.stdout) == (0, "")
        with (tmp_path / "out.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert (row["code"], row["state"], row["redemption_count"]) == (codes[1], "REDEEMED", "1")

    def test_a_book_without_codes_makes_an_empty_file(
        self, api: Api, command: Command, tmp_path: Path
    ) -> None:
        assert command("export", api.draft().book_id, "out.txt").returncode == 0
        assert (tmp_path / "out.txt").read_text() == ""

    def test_a_file_is_replaced_only_by_a_complete_one(
        self, api: Api, command: Command, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.txt"
        out.write_text("before")
        failed = command("export", "6f2a7a3e-0000-8000-8000-000000000000", out)
        assert failed.returncode == 1
        assert "BOOK_NOT_FOUND" in failed.stderr
        assert out.read_text() == "before"
        assert list(tmp_path.iterdir()) == [out]
        (code,) = new_codes(1)
        assert command("export", api.book(codes=[code]).book_id, out).returncode == 0
        assert out.read_text() == f"{code}\n"

    def test_a_file_that_cannot_be_written_is_reported_by_its_name(
        self, api: Api, command: Command
    ) -> None:
        done = command("export", api.draft().book_id, "no/such/folder/out.txt")
        assert done.returncode == 1
        assert "no/such/folder/out.txt" in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestCodes:
    def test_codes_of_a_file_are_changed_and_the_refused_ones_named(
        self, api: Api, command: Command, tmp_path: Path
    ) -> None:
        names = new_codes(1_200)
        book = api.book(codes=names)
        api.disable(names[7])
        (tmp_path / "codes.txt").write_text("\n".join([*names, "NOSUCH"]))
        file = ("--file", tmp_path / "codes.txt")
        dry = command("codes", "disable", book.book_id, *file, "--dry-run")
        assert dry.returncode == 3
        assert dry.stdout == (
            "Dry run, nothing was changed: 1,199 codes disabled, 2 codes refused.\n"
        )
        assert api.stats(book.book_id).disabled_count == 1
        done = command("codes", "disable", book.book_id, *file, "--request-id", "mine")
        assert (done.returncode, done.stdout) == (3, "1,199 codes disabled, 2 codes refused.\n")
        assert f"{names[7]}: INVALID_STATE_TRANSITION: The code is DISABLED." in done.stderr
        assert "NOSUCH: CODE_NOT_FOUND: " in done.stderr
        assert "--request-id mine" in done.stderr
        again = command("codes", "disable", book.book_id, *file, "--request-id", "mine")
        assert (again.returncode, again.stdout) == (done.returncode, done.stdout)
        assert api.stats(book.book_id).disabled_count == 1_200

    def test_an_upload_is_deleted_after_confirmation(self, api: Api, command: Command) -> None:
        book = api.draft()
        api.import_codes(book.book_id, new_codes(30), request_id="wrong")
        delete = ("codes", "delete", book.book_id, "--upload", "wrong")
        refused = command(*delete, stdin=b"n\n")
        assert refused.returncode == 1
        assert "30 codes would be deleted. Delete them?" in refused.stdout
        assert api.stats(book.book_id).code_count == 30
        done = command(*delete, stdin=b"y\n")
        assert done.returncode == 0
        assert done.stdout.endswith("30 codes deleted.\n")
        assert api.stats(book.book_id).code_count == 0
        done = command(*delete, "--yes")
        assert (done.returncode, done.stdout) == (0, "0 codes deleted.\n")

    def test_assignments_from_before_a_time_are_revoked(self, api: Api, command: Command) -> None:
        names = new_codes(3)
        book = api.book(codes=names)
        for name in names:
            api.assign(name, "ann")
        revoke = ("codes", "revoke", book.book_id, "--state", "assigned", "--assigned-before")
        done = command(*revoke, "2020-01-01")
        assert (done.returncode, done.stdout) == (0, "0 assignments revoked.\n")
        done = command(*revoke, "2036-01-01T00:00:00+0100")
        assert (done.returncode, done.stdout) == (0, "3 assignments revoked.\n")

    def test_it_has_to_be_said_which_codes(self, api: Api, command: Command) -> None:
        book_id = api.draft().book_id
        for which in ((), ("--file", "x", "--prefix", "A")):
            done = command("codes", "disable", book_id, *which)
            assert done.returncode == 1
            assert "Say which codes" in done.stderr
        done = command("codes", "delete", book_id, "--upload", "no-such", "--yes")
        assert done.returncode == 1
        assert "UPLOAD_NOT_FOUND" in done.stderr


class Restartable:
    """A service of the test's own, that is killed and comes back on the same port."""

    def __init__(self, folder: Path, database_url: str, redis_url: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.api = Api(self.address)
        self.database_url = database_url
        self._folder = folder
        self._settings = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "COUPON_LOCK_TOKEN_SECRET": "only the tests sign with this one",
            "COUPON_PORT": self.address.split(":")[1],
            "COUPON_METRICS_PORT": "0",
            "COUPON_WORKERS": "1",
            "COUPON_DRAIN_GRACE_MS": "0",
            "COUPON_LOG_LEVEL": "error",
        }
        self._started = ExitStack()

    def start(self) -> None:
        self._process = self._started.enter_context(
            running(self._folder, "serve", **self._settings)
        )
        until(lambda: run(self._folder, "health", "--address", self.address).returncode == 0)

    def kill(self) -> None:
        family = [*descendants(self._process), psutil.Process(self._process.pid)]
        for process in reversed(family):  # the supervisor first, so that nobody is replaced
            process.send_signal(signal.SIGSTOP)
        for process in family:
            process.kill()
        self._process.wait()

    def stop(self) -> None:
        self.api.close()
        self._started.close()

    def code_count(self, book_id: str) -> int:
        return self.api.stats(book_id).code_count


@pytest.fixture
def service(database_url: str, redis_url: str, tmp_path: Path) -> Generator[Restartable]:
    service = Restartable(tmp_path, database_url, redis_url)
    service.start()
    yield service
    service.stop()


class TestWhenTheServiceIsKilledMeanwhile:
    def test_an_import_goes_on_and_every_code_is_there_once(
        self, service: Restartable, tmp_path: Path
    ) -> None:
        codes, book = new_codes(15_000), service.api.draft()
        with running(
            tmp_path, "import", book.book_id, "-", "--address", service.address
        ) as command:
            assert command.stdin is not None
            command.stdin.write("\n".join(codes[:10_001]) + "\n")
            command.stdin.flush()
            while service.code_count(book.book_id) < 5_000:
                assert command.poll() is None
            service.kill()
            service.start()
            out, _ = command.communicate("\n".join(codes[10_001:]), timeout=120)
        assert command.returncode == 0
        assert out.startswith("15,000 created, 0 twice in the file, 0 there already")
        assert service.code_count(book.book_id) == 15_000

    def test_a_generation_goes_on_and_makes_as_many_as_were_asked_for(
        self, service: Restartable, tmp_path: Path
    ) -> None:
        book = service.api.draft()
        with running(
            tmp_path, "generate", book.book_id, "200000", "--address", service.address
        ) as command:
            while service.code_count(book.book_id) == 0:
                assert command.poll() is None
            service.kill()
            service.start()
            out, _ = command.communicate(timeout=120)
        assert (command.returncode, out) == (0, "200,000 codes generated.\n")
        assert service.code_count(book.book_id) == 200_000

    def test_an_export_goes_on_and_has_every_code_once(
        self, service: Restartable, tmp_path: Path
    ) -> None:
        codes, book = new_codes(60_000), service.api.draft()
        chunks = (codes[start : start + 10_000] for start in range(0, 60_000, 10_000))
        service.api.import_codes(book.book_id, *chunks)
        with running(tmp_path, "export", book.book_id, "--address", service.address) as command:
            assert command.stdout is not None
            begin = [command.stdout.readline() for _ in range(10)]  # the rest waits in the pipe
            service.kill()
            service.start()
            rest = command.stdout.read()
        assert command.returncode == 0
        assert sorted(("".join(begin) + rest).splitlines()) == codes

    def test_a_deletion_goes_on_and_deletes_each_code_once(
        self, service: Restartable, tmp_path: Path
    ) -> None:
        codes, book = new_codes(12_000), service.api.book()
        service.api.import_codes(book.book_id, codes[:6_000], codes[6_000:], request_id="wrong")
        used = codes[::1_000]
        for code in used:
            service.api.redeem(code, "ann")
        delete = ("codes", "delete", book.book_id, "--upload", "wrong", "--yes")
        with running(tmp_path, *delete, "--address", service.address) as command:
            while service.code_count(book.book_id) == 12_000:
                assert command.poll() is None
            service.kill()
            service.start()
            left = service.code_count(book.book_id)
            out, _ = command.communicate(timeout=120)
        assert len(used) < left < 12_000
        assert (command.returncode, out) == (3, "11,988 codes deleted, 12 codes refused.\n")
        assert service.code_count(book.book_id) == len(used)
        with psycopg.connect(service.database_url) as connection:
            assert_adds_up(connection)
            rows = connection.execute(
                "SELECT jsonb_array_elements_text(metadata -> 'codes') FROM redemption_audit"
                " WHERE type = 23"
            ).fetchall()
        assert sorted(code for (code,) in rows) == sorted(set(codes) - set(used))
