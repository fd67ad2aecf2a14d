from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coupon_service.cli.failure import CommandError
from coupon_service.cli.text_files import LINE_CHARACTERS_MAX, open_text

TEXT = "A1B2\nÜBER24\nC3D4"
LINES = ["A1B2\n", "ÜBER24\n", "C3D4"]

RANDOM = random.Random(21)


def read(path: Path, encoding: str | None = None) -> list[str]:
    with open_text(path, encoding) as file:
        return list(file.lines())


def refusal(path: Path, encoding: str | None = None) -> str:
    """Why the file is not read: a sentence with its name."""
    with pytest.raises(CommandError) as raised:
        read(path, encoding)
    return str(raised.value).replace(str(path), "FILE")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "codes.txt"


class TestEncodings:
    @pytest.mark.parametrize(
        "content",
        [
            TEXT.encode(),
            TEXT.encode("utf-8-sig"),
            b"\xff\xfe" + TEXT.encode("utf-16-le"),
            b"\xfe\xff" + TEXT.encode("utf-16-be"),
            TEXT.encode("utf-16-le"),
            TEXT.encode("utf-16-be"),
            TEXT.encode("utf-32"),
        ],
        ids=range(7),
    )
    def test_utf8_and_utf16_are_recognised_with_and_without_a_mark(
        self, path: Path, content: bytes
    ) -> None:
        path.write_bytes(content)
        assert read(path) == LINES

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-be", "mac-roman"])
    def test_other_encodings_are_read_when_they_are_named(self, path: Path, encoding: str) -> None:
        path.write_bytes(TEXT.encode(encoding))
        assert read(path, encoding) == LINES

    def test_a_named_utf8_may_have_its_mark(self, path: Path) -> None:
        path.write_bytes(TEXT.encode("utf-8-sig"))
        assert read(path, "UTF8") == LINES

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_the_line_of_what_is_not_utf8_is_named_whatever_ends_lines(
        self, path: Path, end: str
    ) -> None:
        lines = ["A1B2"] * 9_000 + ["ÜBER24", "C3D4"]
        path.write_bytes(end.join(lines).encode("latin-1"))
        assert refusal(path).startswith("Line 9,001 of FILE (byte 0xDC) is not Unicode. Save")
        assert "--encoding latin-1" in refusal(path)

    def test_a_character_that_the_end_of_the_file_cuts_is_found(self, path: Path) -> None:
        path.write_bytes("A1B2\nÜ".encode()[:-1])
        assert refusal(path).startswith("Line 2 of FILE (byte 0xC3) is not Unicode")

    def test_a_wrong_name_of_the_encoding_is_reported(self, path: Path) -> None:
        path.write_bytes("Ü".encode("latin-1"))
        assert refusal(path, "ascii") == ("Line 1 of FILE (byte 0xDC) is not ascii.")

    def test_half_a_character_of_utf16_is_found(self, path: Path) -> None:
        path.write_bytes(b"\xff\xfe" + "A1B2\nC3".encode("utf-16-le") + b"\x00\xd8\x41\x00")
        assert refusal(path).startswith("Line 2 of FILE (byte 0x00) is not Unicode")

    @pytest.mark.parametrize("encoding", ["latin1x", "hex", "rot13", ""])
    def test_what_is_no_encoding_is_reported(self, path: Path, encoding: str) -> None:
        path.write_text(TEXT)
        assert refusal(path, encoding).startswith(f'Unknown encoding "{encoding}".')

    def test_a_mark_that_contradicts_the_named_encoding_is_reported(self, path: Path) -> None:
        path.write_bytes(TEXT.encode("utf-8-sig"))
        assert refusal(path, "latin-1") == "FILE has the mark of UTF-8: omit --encoding."


class TestOtherFiles:
    @pytest.mark.parametrize("entry", ["xl/workbook.xml", "[Content_Types].xml", "Index/Tables"])
    def test_a_spreadsheet_is_refused_with_what_to_do(self, path: Path, entry: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(entry, "A1B2")
        assert refusal(path).startswith("FILE is a spreadsheet: save the sheet with the codes as")

    def test_a_zip_archive_is_refused_with_what_to_do(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("codes.txt", TEXT)
        assert refusal(path) == (
            "FILE is a ZIP archive: unpack it, and import the file with the codes."
        )

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1....", "is a spreadsheet"),
            (b"%PDF-1.7\n...", "is a PDF"),
            (bz2.compress(TEXT.encode()), "is compressed in a way"),
            (lzma.compress(TEXT.encode()), "is compressed in a way"),
            (b"\x89PNG\r\n\x1a\n", "is a picture"),
            (b"{\\rtf1\\ansi A1B2}", "is a word processor's document"),
            (gzip.compress(gzip.compress(TEXT.encode())), "is compressed twice"),
            (RANDOM.randbytes(5_000), "is not text"),
            (bytes(range(32)) * 3 + b"A1B2", "is not text"),
            (bytes(500), "is not text"),
        ],
        ids=range(10),
    )
    def test_what_is_no_text_is_refused(self, path: Path, content: bytes, reason: str) -> None:
        path.write_bytes(content)
        assert refusal(path).startswith(f"FILE {reason}")
        assert "\n" not in refusal(path)

    def test_no_name_of_an_encoding_makes_binary_text(self, path: Path) -> None:
        path.write_bytes(RANDOM.randbytes(5_000))
        assert refusal(path, "latin-1").startswith("FILE is not text")

    def test_random_bytes_of_any_number_are_never_read_as_codes(self, path: Path) -> None:
        for size in range(20, 120):
            path.write_bytes(RANDOM.randbytes(size))
            assert refusal(path)

    def test_an_archive_within_gzip_is_refused(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "inside").write_text(TEXT)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "inside", "inside")
        assert refusal(path).startswith("FILE is an archive")

    def test_a_nul_does_not_make_a_text_binary(self, path: Path) -> None:
        path.write_bytes(b"A1B2\nC3\0D4\n" + b"E5F6\n" * 10)
        assert read(path)[1] == "C3\0D4\n"

    def test_a_missing_file_is_reported_as_missing(self, path: Path) -> None:
        assert refusal(path) == "FILE cannot be read: No such file or directory."

    def test_a_folder_is_reported_as_one(self, tmp_path: Path) -> None:
        assert refusal(tmp_path) == "FILE cannot be read: Is a directory."


class TestGzip:
    def test_it_is_read_whatever_is_in_it(self, path: Path) -> None:
        path.write_bytes(gzip.compress(TEXT.encode("utf-16")))
        assert read(path) == LINES

    def test_damage_is_reported_with_where_it_is(self, path: Path) -> None:
        packed = gzip.compress("\n".join(map(str, range(100_000))).encode())
        path.write_bytes(packed[:-4_000])
        assert refusal(path).startswith("FILE is damaged after line ")
        path.write_bytes(packed[:50_000] + b"\0\xff" * 50 + packed[50_100:])
        assert refusal(path).startswith("FILE is damaged after line ")

    def test_what_only_begins_like_it_is_reported(self, path: Path) -> None:
        path.write_bytes(b"\x1f\x8bA1B2\n")
        assert "is damaged" in refusal(path)


class TestLines:
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_any_line_end_becomes_a_line_feed(self, path: Path, end: bytes) -> None:
        path.write_bytes(end.join([b"A1B2", b"", b"C3D4", b""]))
        assert read(path) == ["A1B2\n", "\n", "C3D4\n"]

    def test_an_empty_file_has_none(self, path: Path) -> None:
        path.touch()
        assert read(path) == []

    def test_an_endless_line_is_refused_before_all_of_it_is_read(self, path: Path) -> None:
        path.write_bytes(b"A1B2\n" + b"A" * (LINE_CHARACTERS_MAX + 1))
        assert refusal(path).startswith("Line 2 of FILE has more than 1,000,000 characters")

    def test_a_file_can_be_gone_through_again_and_counts_its_bytes(self, path: Path) -> None:
        path.write_text("A1B2\n" * 50_000)
        with open_text(path) as file:
            lines = file.lines()
            next(lines)
            assert file.bytes_read < 250_000
            assert len(list(file.lines())) == 50_000
            assert file.bytes_read == file.size_bytes == 250_000

    def test_a_pipe_can_be_gone_through_once(self, path: Path) -> None:
        os.mkfifo(path)
        if not os.fork():
            path.write_bytes(b"A1B2\n")
            os._exit(0)
        with open_text(path) as file:
            assert (file.repeatable, file.size_bytes) == (False, None)
            assert list(file.lines()) == ["A1B2\n"]
        os.wait()


class TestFilesThatChange:
    def lines(self, path: Path) -> Iterator[str]:
        """Of a file that is larger than what is read at once."""
        path.write_text("A1B2\n" * 50_000)
        with open_text(path) as file:
            yield from file.lines()

    @pytest.mark.parametrize("change", ["grows", "shrinks", "is rewritten"])
    def test_it_is_reported_at_the_end(self, path: Path, change: str) -> None:
        lines = self.lines(path)
        next(lines)
        if change == "grows":
            with path.open("a") as more:
                more.write("C3")
        elif change == "shrinks":
            os.truncate(path, 100_000)
        else:
            path.write_text("C3D4\n" * 50_000)
        with pytest.raises(CommandError, match="changed while it was read"):
            list(lines)

    def test_a_file_that_was_deleted_meanwhile_is_read_to_its_end(self, path: Path) -> None:
        lines = self.lines(path)
        next(lines)
        path.unlink()
        assert len(list(lines)) == 49_999
