"""Text files: encodings are detected, gzip is unpacked, other files are refused with advice.

Memory is bounded: a buffer and a line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import stat
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from coupon_service.cli.failure import CommandError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES: Final = 65_536

LINE_CHARACTERS_MAX: Final = 1_000_000
"""A file with a longer line is refused."""

CONTROL_SHARE_MAX: Final = 0.05
"""Share of control characters in a text; among random bytes it is a ninth."""

GZIP: Final = b"\x1f\x8b"

MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte-order marks, and codecs that skip them."""

SPREADSHEET: Final = (
    "is a spreadsheet: save the sheet with the codes as CSV (UTF-8) and import that."
)
PACKED: Final = "is compressed in a way that is not read here (gzip is): unpack it first."
PICTURE: Final = "is a picture: codes are read from text only."

SIGNATURES: Final = (
    (b"PK\x03\x04", "is a ZIP archive: unpack it, and import the file with the codes."),
    (b"PK\x05\x06", "is an empty ZIP archive."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", SPREADSHEET),  # .xls
    (b"%PDF", "is a PDF: copy the codes into a text file, one a line, and import that."),
    (b"{\\rtf", "is a word processor's document: save it as plain text, and import that."),
    (b"BZh", PACKED),
    (b"\xfd7zXZ\0", PACKED),
    (b"\x28\xb5\x2f\xfd", PACKED),  # Zstandard
    (b"7z\xbc\xaf\x27\x1c", PACKED),
    (b"Rar!\x1a\x07", PACKED),
    (b"\x89PNG\r\n", PICTURE),
    (b"\xff\xd8\xff", PICTURE),
    (b"GIF8", PICTURE),
    (b"SQLite format 3\0", "is a database: export the codes as text or CSV, and import that."),
    (b"PAR1", "is a Parquet file: export the codes as text or CSV, and import that."),
)
"""First bytes of files that are not text, and advice."""

OFFICE: Final = (b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis", b"xl/", b"Index/")
"""Parts of ZIP archives that are spreadsheets, of Excel, LibreOffice and Numbers."""

ESCAPED: Final = re.compile("[\udc80-\udcff]")
"""Stands for bytes that could not be decoded."""

TAR: Final = slice(257, 262)


@contextmanager
def open_text(path: Path, encoding: str | None = None) -> Generator[TextFile]:
    """The open file; - is standard input. Raises CommandError if it cannot be read.

    `encoding`: a name that Python knows; None: UTF-8 or UTF-16, detected.
    """
    standard = str(path) == "-"
    try:
        file = io.FileIO(sys.stdin.fileno(), closefd=False) if standard else io.FileIO(path)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
    if standard and file.isatty():
        typer.echo("Reading codes from the terminal. Ctrl-D ends.", err=True)
    with file:
        yield TextFile("Standard input" if standard else str(path), file, encoding)


class _Counted(io.RawIOBase):
    """Counts the bytes read from a file. Closing it leaves the file open."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        read = self._file.readinto(buffer)
        self.count += read or 0
        return read


class TextFile:
    """An open text file.

    `name`: for messages. `size_bytes`: on disk, None for pipes and terminals. `repeatable`: whether
    `lines` can be called more than once.
    """

    def __init__(self, name: str, file: io.FileIO, encoding: str | None) -> None:
        self.name = name
        self._file = file
        self._counted = _Counted(file)
        self._encoding = _known(encoding) if encoding is not None else None
        about = os.fstat(file.fileno())
        self.repeatable = stat.S_ISREG(about.st_mode)
        self._begin = file.tell() if self.repeatable else 0
        self._opened = (about.st_size, about.st_mtime_ns)
        self.size_bytes = about.st_size - self._begin if self.repeatable else None

    @property
    def bytes_read(self) -> int:
        """Bytes that the last call of `lines` has read, ahead of its lines by a buffer."""
        return self._counted.count

    def lines(self) -> Iterator[str]:
        """All lines, with any line end replaced by a line feed.

        Raises CommandError if the file is not text, cannot be read, or has changed by its end.
        """
        number = 0
        try:
            if self.repeatable:
                self._file.seek(self._begin)
            text = self._decoded()
            while line := text.readline(LINE_CHARACTERS_MAX + 1):
                number += 1
                if len(line) > LINE_CHARACTERS_MAX:
                    raise CommandError(
                        f"Line {number:,} of {self.name} has more than {LINE_CHARACTERS_MAX:,}"
                        " characters: this is no file of codes."
                    )
                if not line.isascii() and (bad := ESCAPED.search(line)):
                    raise CommandError(self._undecodable(number, ord(bad[0]) & 0xFF))
                yield line
        except UnicodeDecodeError as error:  # of UTF-16, whose bytes cannot all be escaped
            before = error.object[: error.start].decode(error.encoding, "ignore")
            bad_line = number + 1 + len(re.findall("\r\n?|\n", before))
            raise CommandError(self._undecodable(bad_line, error.object[error.start])) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CommandError(f"{self.name} is damaged after line {number:,}: {error}.") from error
        except OSError as error:
            raise CommandError(
                f"{self.name} cannot be read after line {number:,}: {error.strerror}."
            ) from error
        about = os.fstat(self._file.fileno())
        if self.repeatable and self._opened != (about.st_size, about.st_mtime_ns):
            raise CommandError(
                f"{self.name} changed while it was read: import it again when it is complete."
            )

    def _decoded(self) -> io.TextIOWrapper:
        self._counted = _Counted(self._file)
        data: io.BufferedReader | gzip.GzipFile = io.BufferedReader(self._counted, BUFFER_BYTES)
        head = data.peek(BUFFER_BYTES)
        if head.startswith(GZIP):
            data = gzip.GzipFile(fileobj=data)
            head = data.peek(BUFFER_BYTES)
        _refuse_other_kinds(self.name, head)
        encoding = self._encoding or _recognised(head)
        _refuse_wrong_mark(self.name, head, self._encoding)
        if not encoding.startswith(("utf-16", "utf-32")):
            _refuse_control_characters(self.name, head)
        return io.TextIOWrapper(data, encoding=encoding, errors="surrogateescape")

    def _undecodable(self, line: int, byte: int) -> str:
        where = f"Line {line:,} of {self.name} (byte 0x{byte:02X})"
        if self._encoding is not None:
            return f"{where} is not {self._encoding.removesuffix('-sig')}."
        return (
            f"{where} is not Unicode. Save the file as UTF-8, or name its encoding: --encoding"
            " latin-1, or cp1252 for older Windows programs."
        )


def _known(encoding: str) -> str:
    """The normalised name of an encoding. Raises CommandError."""
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), name)  # some codecs are not of text
    except (LookupError, ValueError) as error:
        raise CommandError(
            f'Unknown encoding "{encoding}". Use utf-8, utf-16, latin-1, cp1252 or any other that'
            " Python knows."
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def _recognised(head: bytes) -> str:
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    # UTF-16 without a mark: every other byte of A-Z, 0-9 and line ends is 0.
    first, second = head[::2], head[1::2]
    if second and first.count(0) + second.count(0) > 0.4 * len(second):
        if first.count(0) < 0.1 * len(first):
            return "utf-16-le"
        if second.count(0) < 0.1 * len(second):
            return "utf-16-be"
    return "utf-8"


def _refuse_other_kinds(name: str, head: bytes) -> None:
    for begin, advice in SIGNATURES:
        if head.startswith(begin):
            office = begin.startswith(b"PK") and any(part in head for part in OFFICE)
            raise CommandError(f"{name} {SPREADSHEET if office else advice}")
    if head.startswith(GZIP):
        raise CommandError(f"{name} is compressed twice: unpack it first.")
    if head[TAR] == b"ustar":
        raise CommandError(f"{name} is an archive: unpack it, and import the file with the codes.")


def _refuse_wrong_mark(name: str, head: bytes, encoding: str | None) -> None:
    for mark, marked in MARKS:
        if head.startswith(mark):
            family = marked.removesuffix("-sig")
            if encoding is not None and not encoding.startswith(family):
                raise CommandError(f"{name} has the mark of {family.upper()}: omit --encoding.")
            return


def _refuse_control_characters(name: str, head: bytes) -> None:
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1a\x1b" for byte in head)
    if controls > 1 and controls > CONTROL_SHARE_MAX * len(head):
        raise CommandError(f"{name} is not text. Use text with one code per line, or CSV.")
