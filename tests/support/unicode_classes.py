"""Generator of the tables in `coupon_service/model/code_characters.py` from Unicode's data.

`python -m support.unicode_classes`, run in `tests` by a Python with the tables' version of Unicode,
rewrites the module.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from unicodedata import category, normalize, unidata_version

import coupon_service.model.code_characters as frozen

WHITE_CONTROLS = frozenset("\t\n\v\f\r\x85")
"""Property White_Space, within the general category Cc."""

DEFAULT_IGNORABLE = frozenset(
    chr(point)
    for first, last in (
        (0x00AD, 0x00AD),
        (0x034F, 0x034F),
        (0x061C, 0x061C),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x200B, 0x200F),
        (0x202A, 0x202E),
        (0x2060, 0x206F),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF),
        (0xFFA0, 0xFFA0),
        (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A),
        (0xE0000, 0xE0FFF),
    )
    for point in range(first, last + 1)
)
"""Property Default_Ignorable_Code_Point: invisible characters."""

LETTERS_LIKE_QUOTES = frozenset("ʹʺʻʼʽʾʿˈˊˋˮߴߵ")
"""Letters by category that keyboards and programs insert instead of a quote or apostrophe."""

NOTES = range(0x1D100, 0x1D200)
"""The block Musical Symbols, whose combining marks belong to notes, which are left out."""

STRUCTURE = frozenset("(),/:;<=>@[\\]{|}\N{FRACTION SLASH}\N{DIVISION SLASH}")
"""Signs of lists, addresses and paths: a text that has one is no code."""

NOT_READ = "\N{REPLACEMENT CHARACTER}"


def class_of(character: str) -> str:
    """LETTERS, MARKS or LEFT_OUT; empty for characters that no code may have."""
    kind = category(character)
    if character in WHITE_CONTROLS or (character in DEFAULT_IGNORABLE and kind != "Cn"):
        return "LEFT_OUT"
    if kind in ("Cc", "Cn", "Co", "Cs") or character == NOT_READ:
        return ""
    parts = normalize("NFKD", character)
    if character in LETTERS_LIKE_QUOTES or kind in ("Cf", "Me"):
        return "LEFT_OUT"
    if kind[0] in "LN" or any(category(part)[0] in "LN" for part in parts):
        return "LETTERS"
    if kind[0] == "M" and ord(character) not in NOTES:
        return "MARKS"
    return "" if STRUCTURE & set(parts) else "LEFT_OUT"


def ranges_of(wanted: str) -> str:
    """The characters of a class, in the format of the tables."""
    ranges: list[list[int]] = []
    for point in range(0x110000):
        if class_of(chr(point)) != wanted:
            continue
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return " ".join(f"{a:X}" if a == b else f"{a:X}-{b:X}" for a, b in ranges)


def lines_of(names: Iterable[str]) -> str:
    """The tables as source text."""
    tables = {it: textwrap.fill(ranges_of(it), 98, break_on_hyphens=False) for it in names}
    return "".join(f'\n{name}: Final = """\n{table}\n"""\n' for name, table in tables.items())


if __name__ == "__main__":
    assert unidata_version == frozen.UNICODE_VERSION, unidata_version
    path = Path(frozen.__file__)
    head, mark, _ = path.read_text("utf-8").partition("# --- tables\n")
    path.write_text(head + mark + lines_of(("LETTERS", "MARKS", "LEFT_OUT")), "utf-8")
