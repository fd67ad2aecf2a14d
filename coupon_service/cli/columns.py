"""Detection by the first lines of a file: delimiter, header, column, and data that is not codes."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from coupon_service.cli.failure import CommandError
from coupon_service.cli.rows import Layout, Record, read_records

DELIMITERS: Final = (",", ";", "\t", "|")

EVEN_SHARE_MIN: Final = 0.9
"""Share of records that have the same number of cells."""

LOOK_SHARE_MIN: Final = 0.8
"""Share of the values of a column that look alike."""

OTHERS_MIN: Final = 5
"""Rows after the first that are needed to compare it with them."""

COLUMNS_SHOWN_MAX: Final = 20
SHOWN_CHARACTERS: Final = 30

HEADERS: Final = re.compile(
    r"(?:(?:coupon|voucher|promo|promotion(?:al)?|discount|gift(?: ?card)?|redemption) ?)?codes?"
    r"|coupons?|vouchers?"
    r"|gift ?cards?|serial ?numbers?"
    r"|(?:gutschein|rabatt|aktions) ?codes?|gutscheine?(?: ?(?:nummer|nr))?"
    r"|code (?:promo|de reduction)|bon de reduction"
    r"|codigos?(?: de descuento)?|cupon(?:es)?|codic[ei](?: sconto)?"
    r"|(?:kortings ?|rabatt?)?[ck]ode?s?"
)
"""What columns of codes are called: in lower case, without accents, parts with a space between."""

MONTH: Final = r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-zäé]{0,7}\.?"
TIME: Final = r"(?:[T ]\s*\d{1,2}:\d\d.*)?"
CURRENCY: Final = r"(?:[€$£¥%]|(?:eur|usd|gbp|chf|jpy|sek|nok|dkk|pln|czk|cad|aud)\b)"
FIGURES: Final = r"\d{1,3}(?:[., '\u00a0\u2009]?\d{3})*"

KINDS: Final = (
    ("dates", rf"(?:19|20)\d\d([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01]){TIME}"),
    ("dates", rf"(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\1(?:\d\d)?\d\d{TIME}"),
    ("dates", rf"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]){TIME}"),
    ("dates", rf"\d{{1,2}}[-. ]+{MONTH}[-,. ]+(?:\d\d)?\d\d{TIME}"),
    ("dates", rf"{MONTH} *\d{{1,2}},? *\d{{4}}{TIME}"),
    ("amounts", rf"[-+]?{FIGURES}[.,]\d{{1,2}}|[-+]?\d{{1,3}}"),
    ("amounts", rf"[-+]?{CURRENCY}\s*{FIGURES}(?:[.,]\d\d?)?|{FIGURES}(?:[.,]\d\d?)?\s*{CURRENCY}"),
    ("e-mail addresses", r"[^@\s]+@[^@\s]+\.\w+"),
    ("web addresses", r"(?:https?://|www\.).+"),
    ("a document of another kind (JSON, HTML, XML)", r"[<{\[].*|.*[>}\]],?"),
)
"""Data that is not codes. The pattern matches a whole value."""


def find_layout(
    head: Sequence[str], *, column: str | None, header: bool | None, is_csv: bool, complete: bool
) -> Layout:
    """The layout of a file, by its first lines; `complete`: these are all.

    `column`: name or number, None: the only one. `header`: whether there is one, None: detect it.
    `is_csv`: whatever the lines look like.

    Raises CommandError.
    """
    before = 1 if head and re.fullmatch(r"sep=.\n?", head[0]) else 0  # as Excel writes it
    delimiter = head[0][4] if before else _delimiter(head, column, complete=complete)
    quoted = any(line.lstrip().startswith('"') for line in head)
    if delimiter is None and (is_csv or quoted):
        delimiter = ","
    records = _records(head[before:], delimiter, complete=complete)
    if not records:
        return Layout(delimiter, skipped_lines=before)
    first, others = records[0], records[1:]
    index, named = _column(first, column, header)
    skipped = before
    detected = header is None and not named and _is_header(first, others, index)
    if header or named or detected:
        skipped += others[0].line - 1 if others else len(head)
    titled = skipped > before
    title = _cell(first, index) if titled else ""
    names = tuple(map(str.strip, first.cells)) if titled else ()
    return Layout(delimiter, index, skipped, title, detected, len(first.cells), names)


def find_column(layout: Layout, column: str) -> int:
    """The index of another column of the file, by its name or number. Raises CommandError."""
    if not layout.names and not column.isdecimal():
        raise CommandError(
            f"Without a header, columns have no names: use a number for {shown(column)}."
        )
    first = Record(1, list(layout.names) or [""] * layout.width, "")
    if len(_places(first, column)) > 1:
        raise CommandError(f"Several columns are called {shown(column)}: use a number in --map.")
    return _column(first, column, None if layout.names else False)[0]


def doubt(values: Sequence[str]) -> str | None:
    """The kind of data that these values are instead of codes, with an example; None for codes.

    The first value may be a header and is not needed for the decision.
    """
    return _look(values) or (_look(values[1:]) if len(values) > 2 else None)


def _look(values: Sequence[str]) -> str | None:
    counts = Counter(value.casefold() for value in values if value)
    total = counts.total()
    if not total:
        return None
    for kind, pattern in KINDS:
        looks = re.compile(pattern, re.IGNORECASE).fullmatch
        alike = [value for value in values if value and looks(value)]
        if len(alike) >= LOOK_SHARE_MIN * total:
            return f"{kind}, such as {shown(alike[0])}"
    running = [str(number) for number in range(total + 1)]
    if total > 2 and values in (running[1:], running[:-1]):
        return "running numbers"
    if total > 2 and len(counts) == 1:
        return f"one value, {shown(values[0])}, over and over"
    if total >= 10 and len(counts) * 4 <= total:
        return f"{len(counts)} values over and over, such as {shown(values[0])}"
    return None


def shown(text: str) -> str:
    """Text of the file, shortened, in quotation marks."""
    text = " ".join(text.split())
    return f'"{text[:SHOWN_CHARACTERS]}…"' if len(text) > SHOWN_CHARACTERS else f'"{text}"'


def _cell(record: Record, index: int) -> str:
    return record.cells[index].strip() if index < len(record.cells) else ""


def _records(head: Sequence[str], delimiter: str | None, *, complete: bool) -> list[Record]:
    """The records that are not blank, without the last one if the head may cut it."""
    records = list(read_records(head, delimiter, strict=False))
    if not complete:
        del records[-1:]
    return [record for record in records if not record.blank]


def _delimiter(head: Sequence[str], column: str | None, *, complete: bool) -> str | None:
    """The delimiter that gives the wanted column, or else the most cells in most records."""
    best, most = None, 1
    for delimiter in DELIMITERS:
        records = _records(head, delimiter, complete=complete)
        if not records:
            continue
        if column is not None and len(records[0].cells) > 1 and _places(records[0], column):
            return delimiter
        width, count = Counter(len(record.cells) for record in records).most_common(1)[0]
        if width > most and count >= EVEN_SHARE_MIN * len(records):
            best, most = delimiter, width
    return best


def _column(first: Record, column: str | None, header: bool | None) -> tuple[int, bool]:
    """The index of the column, and whether it was found by its name in the first record."""
    width = len(first.cells)
    if column is None:
        if width == 1:
            return 0, False
        raise CommandError(
            f"Which column has the codes? {_columns(first)} Use --column with a name or a number."
        )
    places = _places(first, column)
    if len(places) == 1 and header is not False:
        return places[0], True
    if len(places) > 1:
        raise CommandError(
            f"Several columns are called {shown(column)}: use --column with a number."
        )
    if column.strip().isdecimal():
        if 1 <= int(column) <= width:
            return int(column) - 1, False
    elif header is False:
        raise CommandError("Without a header, columns have no names: use --column with a number.")
    raise CommandError(f"There is no column {shown(column)}. {_columns(first, column)}")


def _places(first: Record, column: str) -> list[int]:
    wanted = column.strip().casefold()
    return [at for at, name in enumerate(first.cells) if name.strip().casefold() == wanted]


def _columns(first: Record, wanted: str = "") -> str:
    """The columns of the first line, and the one that may be meant."""
    names = [name.strip() for name in first.cells]
    listed = ", ".join(f"{at} {shown(name)}" for at, name in enumerate(names, 1) if at < 21)
    more = f" and {len(names) - COLUMNS_SHOWN_MAX} more" if len(names) > COLUMNS_SHOWN_MAX else ""
    by_name = {name.casefold(): name for name in reversed(names) if name}
    near = difflib.get_close_matches(wanted.strip().casefold(), by_name, n=1)
    meant = f" Did you mean {shown(by_name[near[0]])}?" if near else ""
    return f"The first line has {listed}{more}.{meant}"


def _is_header(first: Record, others: Sequence[Record], index: int) -> bool:
    """Whether the first record is a header. Raises CommandError if that cannot be decided."""
    name = _cell(first, index)
    if any(HEADERS.fullmatch(plain_name(cell)) for cell in first.cells):
        return True
    if not name or any(map(_has_digit, first.cells)):
        return False
    codes = _values(others, index)
    if len(first.cells) == 1 and len(name) in map(len, codes):
        return False  # as long as codes are
    alike = any(
        values and all(map(_has_digit, values))
        for values in (_values(others, at) for at in range(len(first.cells)))
    )
    if not alike or (len(first.cells) == 1 and len(codes) < OTHERS_MIN):
        return False
    written_unlike = name != name.upper() and all(code == code.upper() for code in codes)
    if len(codes) >= OTHERS_MIN and (written_unlike or len(first.cells) > 1):
        return True
    raise CommandError(
        f"The first line, {shown(name)}, may be a header: the lines after it look different."
        " Use --header, or --no-header to import it."
    )


def _values(records: Sequence[Record], index: int) -> list[str]:
    return [value for record in records if (value := _cell(record, index))]


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def plain_name(name: str) -> str:
    """A name in lower case, without accents, with spaces for signs."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()
    return " ".join(re.findall("[a-z0-9]+", letters))
