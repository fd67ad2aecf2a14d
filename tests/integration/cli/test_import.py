"""`coupon-service import`, against a real server, with files as people really have them."""

from __future__ import annotations

import csv
import fcntl
import functools
import gzip
import os
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command_line import run, running
from support.service import Api, new_codes
from support.waiting import until

from coupon_service.embedded.machine import free_port

Command = Callable[..., subprocess.CompletedProcess[str]]

UNKNOWN_BOOK = "6f2a7a3e-0000-8000-8000-000000000000"


@pytest.fixture
def command(server_address: str, tmp_path: Path) -> Command:
    """Import into a book of the shared server, in a folder of the test's own."""

    def command(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        return run(tmp_path, "import", *arguments, "--address", server_address, stdin=stdin)

    return command


@pytest.fixture
def book(api: Api) -> str:
    return api.draft().book_id


def rejected(path: Path) -> list[tuple[str, str, str]]:
    """Line, code and outcome of each row of a file of rejects."""
    with path.open(newline="") as file:
        return [(row["line"], row["code"], row["outcome"]) for row in csv.DictReader(file)]


def is_drained(pipe: int) -> bool:
    """Whether all that was written has been read at the other end."""
    return fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) == bytes(4)


def lines(codes: list[str]) -> bytes:
    return "\n".join(codes).encode()


class TestFiles:
    def test_a_file_from_windows_is_imported_and_what_is_wrong_rejected_by_line(
        self, api: Api, book: str, command: Command, tmp_path: Path
    ) -> None:
        there, first, second = new_codes(3)
        api.book(codes=[there])
        rows = [first, "", second, "[/no]:code:\U0001f381", first.lower(), f" {there}  ", "AB1"]
        (tmp_path / "codes.txt").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
        done = command(book, "codes.txt", "--rejects", "rejects.csv")
        assert done.returncode == 3
        assert done.stdout == "2 created, 1 twice in the file, 1 there already, 2 invalid\n"
        assert api.stats(book).code_count == 2
        assert rejected(tmp_path / "rejects.csv") == [
            ("4", "[/no]:code:\U0001f381", "INVALID"),
            ("5", first.lower(), "DUPLICATE_IN_UPLOAD"),
            ("6", there, "ALREADY_EXISTS"),
            ("7", "AB1", "INVALID"),
        ]
        assert "[/no]:code:" in done.stderr

    def test_a_rejected_row_is_kept_as_it_stands_with_its_reason(
        self, book: str, command: Command, tmp_path: Path
    ) -> None:
        (code,) = new_codes(1)
        text = f'note;Code\n"one;\ntwo";{code}\n"a ""b""\nc"; {code.lower()} \nx;AB\ny;\n'
        (tmp_path / "codes.csv").write_text(text)
        done = command(book, "codes.csv", "--column", "code", "--rejects", "rejects.csv")
        assert done.returncode == 3
        with (tmp_path / "rejects.csv").open(newline="") as file:
            rows = [list(row.values()) for row in csv.DictReader(file)]
        assert [row[0] for row in rows] == ["4", "6", "7"]
        assert [row[3] for row in rows] == ["DUPLICATE_CODE", *["INVALID_ARGUMENT"] * 2]
        assert rows[1][4] == "expected at least 4 letters or digits"
        assert [row[5] for row in rows] == [f'"a ""b""\nc"; {code.lower()} ', "x;AB", "y;"]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_a_column_is_imported_whatever_the_file_is_written_in(
        self,
        api: Api,
        book: str,
        command: Command,
        tmp_path: Path,
        encoding: str,
        packed: bool,
    ) -> None:
        codes = new_codes(2)
        content = f"nöte;Code\nx;{codes[0]}\ny;{codes[1]}\n".encode(encoding)
        (tmp_path / "codes.csv").write_bytes(gzip.compress(content) if packed else content)
        done = command(book, "codes.csv", "--column", "code")
        assert (done.returncode, done.stdout.split(",")[0]) == (0, "2 created")
        assert {api.get_code(code).book_id for code in codes} == {book}

    def test_rows_are_read_from_standard_input_and_numbered_over_all_chunks(
        self, book: str, command: Command, tmp_path: Path
    ) -> None:
        codes = new_codes(12_000)
        codes[9_999] = codes[0]
        done = command(book, "-", "--rejects", "rejects.csv", stdin=lines(codes))
        assert done.stdout == "11,999 created, 1 twice in the file, 0 there already, 0 invalid\n"
        assert rejected(tmp_path / "rejects.csv") == [("10000", codes[0], "DUPLICATE_IN_UPLOAD")]

    @pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf", b"Code\n"])
    def test_a_file_without_codes_is_imported(
        self, book: str, command: Command, content: bytes
    ) -> None:
        done = command(book, "-", stdin=content)
        assert (done.returncode, done.stdout) == (0, "There was nothing to import.\n")

    def test_a_header_is_said_to_be_left_out(self, api: Api, book: str, command: Command) -> None:
        (code,) = new_codes(1)
        done = command(book, "-", stdin=f"Voucher Code\n{code}\n".encode())
        assert done.stdout.startswith("1 created, ")
        assert done.stderr.startswith('The first line, "Voucher Code", is a header and is skipped.')
        assert api.stats(book).code_count == 1


class TestWhatIsNoFileOfCodes:
    @pytest.mark.parametrize(
        ("name", "content", "options", "reason"),
        [
            ("random.bin", bytes(range(256)) * 20, (), "is not text"),
            ("codes.xlsx", b"PK\x03\x04....[Content_Types].xml", (), "is a spreadsheet"),
            ("a.csv", b"name,Valid Until\nx,2027-01-01\n", ("--column", "valid until"), "dates"),
            ("a.csv", b"name,price\n" + b"x,10.00\n" * 5, ("--column", "2"), "amounts"),
            ("a.csv", b"name,price\nx,10.00\n", ("--column", "2"), '"price", may be a header'),
            ("a.csv", b"code,name\nA1B2,x\nC3D4,y\n", (), "Which column has the codes?"),
            ("a.csv", b"code,name\nA1B2,x\n", ("--column", "cod"), 'Did you mean "code"?'),
            ("a.txt", b"A1B2C3\n" + "ÜBER24".encode("latin-1"), (), "--encoding latin-1"),
            ("a.txt", b'code\n"A1B2C3\n' * 3, ("--column", "code"), "is not CSV"),
            ("a.txt", b"SAME\n" * 3, (), "one value"),
        ],
        ids=range(10),
    )
    def test_it_is_refused_before_anything_is_sent_with_what_to_do(
        self,
        api: Api,
        book: str,
        command: Command,
        tmp_path: Path,
        name: str,
        content: bytes,
        options: tuple[str, ...],
        reason: str,
    ) -> None:
        (tmp_path / name).write_bytes(content)
        done = command(book, name, *options, "--rejects", "rejects.csv")
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr[:-1].isprintable()
        assert "request-id" not in done.stderr
        assert api.event_names(book_id=book) == ["BOOK_CREATED"]
        assert not (tmp_path / "rejects.csv").exists()

    def test_it_is_imported_with_force_all_the_same(self, book: str, command: Command) -> None:
        code = str(time.time_ns())
        done = command(book, "-", "--force", stdin=f"{code}\n".encode() * 3)
        assert (done.returncode, done.stdout.split(",")[0]) == (3, "1 created")

    def test_latin1_is_read_when_it_is_named(
        self, book: str, command: Command, tmp_path: Path
    ) -> None:
        (code,) = new_codes(1)
        (tmp_path / "codes.csv").write_bytes(f"Prämie;Code\nfür;{code}\n".encode("latin-1"))
        done = command(book, "codes.csv", "--column", "code", "--encoding", "latin-1")
        assert done.stdout.startswith("1 created")

    @pytest.mark.parametrize("book_id", ["no-book", "", UNKNOWN_BOOK])
    def test_a_book_that_is_not_there_is_explained(self, command: Command, book_id: str) -> None:
        done = command(book_id, "-", stdin=b"A1B2C3\n")
        assert done.returncode == 1
        assert "request-id" not in done.stderr
        assert done.stderr.endswith("coupon-service call ListCouponBooks lists the books.\n")

    def test_where_nothing_listens_nothing_is_said_of_going_on(self, tmp_path: Path) -> None:
        port = str(free_port())
        done = run(tmp_path, "import", UNKNOWN_BOOK, "-", stdin=b"A1B2C3\n", COUPON_PORT=port)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("UNAVAILABLE: the service at ")
        assert "request-id" not in done.stderr

    def test_a_book_that_is_closed_is_explained(
        self, api: Api, book: str, command: Command
    ) -> None:
        api.close_book(book)
        done = command(book, "-", stdin=b"A1B2C3\n")
        assert done.returncode == 1
        assert "INVALID_STATE_TRANSITION" in done.stderr
        assert "request-id" not in done.stderr


class TestRejects:
    def test_short_codes_are_rejected_unless_it_is_said(
        self, api: Api, book: str, command: Command, tmp_path: Path
    ) -> None:
        rows = ["XYZ", "XY"]
        done = command(book, "-", stdin=lines(rows))
        assert done.stdout == "0 created, 0 twice in the file, 0 there already, 2 invalid\n"
        done = command(
            book, "-", "--min-length", "3", "--rejects", "rejects.csv", stdin=lines(rows)
        )
        assert rejected(tmp_path / "rejects.csv")[-1] == ("2", rows[1], "INVALID")
        assert done.returncode == 3
        api.update(book, min_code_length=2)
        done = command(book, "-", stdin=lines(rows[1:]))
        assert "expected at least" not in done.stderr

    def test_twenty_are_shown_and_it_is_said_how_to_get_the_others(
        self, book: str, command: Command, tmp_path: Path
    ) -> None:
        rows = lines(new_codes(30))
        command(book, "-", stdin=rows)
        again = command(book, "-", "--request-id", "again", stdin=rows)
        assert again.stdout.startswith("0 created, 0 twice in the file, 30 there already")
        assert "and 10 more: --rejects FILE writes them all, with the same command" in again.stderr
        replayed = command(
            book, "-", "--request-id", "again", "--rejects", "rejects.csv", stdin=rows
        )
        assert (replayed.returncode, replayed.stdout) == (3, again.stdout)
        assert "and 10 more: rejects.csv has them all." in replayed.stderr
        assert len(rejected(tmp_path / "rejects.csv")) == 30

    def test_it_stops_when_too_many_rows_were_rejected(
        self, api: Api, book: str, command: Command
    ) -> None:
        codes = new_codes(10_000)
        rows = lines([*codes[:5_000], *codes[:20], *codes[5_000:]])
        done = command(book, "-", "--max-rejects", "19", stdin=rows)
        assert done.returncode == 3
        assert "Stopped: more than 19 rows were rejected. It got to line 10,000." in done.stderr
        assert done.stdout.startswith("9,980 created, 20 twice")
        assert api.stats(book).code_count == 9_980
        request_id = done.stderr.rsplit("--request-id ", 1)[1].strip()
        done = command(book, "-", "--max-rejects", "20", "--request-id", request_id, stdin=rows)
        assert done.stdout.startswith("10,000 created, 20 twice")
        assert "Stopped" not in done.stderr

    def test_a_file_that_cannot_be_written_is_reported_before_anything_is_sent(
        self, api: Api, book: str, command: Command
    ) -> None:
        done = command(book, "-", "--rejects", "no/folder/rejects.csv", stdin=b"A1B2C3\n")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("no/folder/rejects.csv cannot be written")
        assert api.stats(book).code_count == 0

    def test_a_full_disk_is_reported_with_how_far_it_got(self, book: str, command: Command) -> None:
        done = command(book, "-", "--rejects", "/dev/full", stdin=b"A1B2C3\n")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "/dev/full cannot be written: No space left on device.\n"


class TestDryRuns:
    def test_all_outcomes_are_reported_and_nothing_is_changed(
        self, api: Api, book: str, command: Command, tmp_path: Path
    ) -> None:
        codes = new_codes(6_000)
        api.book(codes=codes[:1])
        rows = lines([*codes, codes[1], "AB"])
        done = command(book, "-", "--dry-run", "--rejects", "rejects.csv", stdin=rows)
        assert done.returncode == 3
        assert done.stdout == (
            "Dry run, nothing was changed:"
            " 5,999 created, 1 twice in the file, 1 there already, 1 invalid\n"
        )
        assert "request-id" not in done.stderr
        assert rejected(tmp_path / "rejects.csv") == [
            ("1", codes[0], "ALREADY_EXISTS"),
            ("6001", codes[1], "DUPLICATE_IN_UPLOAD"),
            ("6002", "AB", "INVALID"),
        ]
        assert api.event_names(book_id=book) == ["BOOK_CREATED"]
        assert api.stats(book).code_count == 0
        imported = command(book, "-", stdin=rows)
        assert done.stdout.endswith(imported.stdout)


class TestGoingOn:
    def test_the_same_request_id_changes_nothing_more(
        self, api: Api, book: str, command: Command
    ) -> None:
        rows = lines(new_codes(10))
        first = command(book, "-", "--request-id", "mine", stdin=rows)
        again = command(book, "-", "--request-id", "mine", stdin=rows)
        assert first.stdout == again.stdout
        assert api.stats(book).code_count == 10

    def test_other_rows_under_the_same_request_id_are_explained(
        self, book: str, command: Command
    ) -> None:
        command(book, "-", "--request-id", "mine", stdin=lines(new_codes(1)))
        done = command(book, "-", "--request-id", "mine", stdin=lines(new_codes(1)))
        assert done.returncode == 1
        assert "The file or an option differs" in done.stderr

    def test_what_takes_several_chunks_says_how_to_go_on(self, book: str, command: Command) -> None:
        assert command(book, "-", stdin=lines(new_codes(4_999))).stderr == ""
        done = command(book, "-", stdin=lines(new_codes(5_001)))
        assert done.stderr.startswith(
            "After a break, resume with the same command and --request-id"
        )

    def test_ctrl_c_says_how_far_it_got_and_goes_on_from_there(
        self, api: Api, book: str, server_address: str, command: Command, tmp_path: Path
    ) -> None:
        codes = new_codes(10_000)
        with running(tmp_path, "import", book, "-", "--address", server_address) as process:
            assert process.stdin is not None
            process.stdin.write("\n".join(codes[:5_001]) + "\n")
            process.stdin.flush()
            until(lambda: api.stats(book).code_count == 5_000)
            # It reads on once it has taken note of the answer.
            process.stdin.write(codes[5_001] + "\n")
            process.stdin.flush()
            until(functools.partial(is_drained, process.stdin.fileno()))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "")
        assert "It got to line 5,000. Resume with the same command and --request-id" in err
        assert "5,000 created" in err
        assert "Traceback" not in err
        request_id = err.rsplit("--request-id ", 1)[1].split()[0]
        done = command(book, "-", "--request-id", request_id, stdin=lines(codes))
        assert done.stdout.startswith("10,000 created, 0 twice in the file, 0 there already")

    def test_ctrl_c_before_anything_was_sent_says_that_nothing_was_imported(
        self, book: str, server_address: str, tmp_path: Path
    ) -> None:
        with running(tmp_path, "import", book, "-", "--address", server_address) as process:
            assert process.stdin is not None
            process.stdin.write("A1B2C3\n")
            process.stdin.flush()
            until(functools.partial(is_drained, process.stdin.fileno()))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "Nothing was imported.\n")

    def test_a_file_that_grows_meanwhile_is_gone_on_with(
        self, api: Api, book: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from coupon_service.cli import upload

        codes = new_codes(10_000)
        (tmp_path / "codes.txt").write_bytes(lines(codes[:7_500]) + b"\n")

        def uploaded_while_it_grows(*arguments: Any) -> object:
            with (tmp_path / "codes.txt").open("ab") as file:
                file.write(lines(codes[7_500:]))
            return uploaded(*arguments)

        uploaded = upload.uploaded
        monkeypatch.setattr(upload, "uploaded", uploaded_while_it_grows)
        done = command(book, "codes.txt", "--request-id", "mine")
        assert done.returncode == 1
        assert "codes.txt changed while it was read" in done.stderr
        assert "It got to line 5,000. Resume with the same command" in done.stderr
        monkeypatch.undo()
        done = command(book, "codes.txt", "--request-id", "mine")
        assert done.stdout.startswith("10,000 created, 0 twice in the file, 0 there already")
        assert api.stats(book).code_count == 10_000

    def test_a_pipe_that_turns_out_to_be_no_text_is_reported_with_how_far_it_got(
        self, book: str, server_address: str, tmp_path: Path
    ) -> None:
        rows = "\n".join(new_codes(15_000)) + "\n"
        with running(tmp_path, "import", book, "-", "--address", server_address) as process:
            assert process.stdin is not None
            process.stdin.write(rows)
            process.stdin.flush()
            os.write(process.stdin.fileno(), b"A1B2\xff\n")
            _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "It got to line 10,000. Resume with" in err
        assert err.splitlines()[-1].startswith("Line 15,001 of Standard input (byte 0xFF)")
