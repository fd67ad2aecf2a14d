"""What people type and paste, as the code that is stored and looked up. Pure."""

from __future__ import annotations

from bisect import bisect
from typing import Final
from unicodedata import normalize as composed

from coupon_service.model.code_characters import LEFT_OUT, LETTERS, MARKS

CODE_LENGTH_MAX: Final = 64
"""The longest normalised code, in characters."""

TYPED_CODE_LENGTH_MAX: Final = 128
"""The longest text that is read as a code, in characters."""

EXPECTED: Final = (
    f"expected 1 to {CODE_LENGTH_MAX} letters or digits;"
    " case, spaces, dashes, quotes and signs such as % do not count"
)

NO_CODE: Final = "?"
"""Stands for a text that cannot be a code. It is not normalised, so that no code equals it."""

ROUNDS_MAX: Final = 8
"""How often a text is folded until it stays itself: three times, as far as is known."""


class CodeTooLong(ValueError):
    """The text, or what is left of it, is longer than a code can be."""


def normalize_code(text: str) -> str:
    """The code that is stored and looked up, for what a person typed or pasted.

    The same for every spelling: compatibility forms are made plain and composed (NFKC), letters
    become upper-case, and spaces, dashes, quotes, signs such as % and whatever cannot be seen are
    left out. Letters and digits of any script stay. A normalised code is its own normalised form.
    The result never depends on the version of Python: see `code_characters.py`.

    Raises:
        CodeTooLong: more than 128 characters, or more than 64 that count.
        ValueError: it cannot be a code, or nothing of it is left. The message says what was
            expected, without the text itself.
    """
    if not text.isascii():
        return _normalize_any_script(text)
    code = text.upper()
    if not code.isalnum():
        code = code.encode("ascii").translate(None, _ASCII_SIGNS).decode("ascii")
        if not code.isalnum() or len(text) > TYPED_CODE_LENGTH_MAX:
            raise _refusal(text)
    if len(code) > CODE_LENGTH_MAX:
        raise CodeTooLong(EXPECTED)
    return code


def is_code(text: str) -> bool:
    """Whether there can be such a code."""
    try:
        normalize_code(text)
    except ValueError:
        return False
    return True


def _refusal(text: str) -> ValueError:
    return (CodeTooLong if len(text) > TYPED_CODE_LENGTH_MAX else ValueError)(EXPECTED)


def _normalize_any_script(text: str) -> str:
    if len(text) > TYPED_CODE_LENGTH_MAX:  # first: composing takes the square of the length
        raise _refusal(text)
    code, before = text, ""
    for _ in range(ROUNDS_MAX):
        if _UNKNOWN in _kinds(code):
            raise _refusal(text)
        code, before = _folded(code), code
        if code == before:
            break
    kinds = _kinds(code)
    if code != before or not kinds.startswith(_LETTER) or _SIGN in kinds:
        raise _refusal(text)
    if len(code) > CODE_LENGTH_MAX:
        raise CodeTooLong(EXPECTED)
    return code


def _folded(text: str) -> str:
    """One round. Canonically equal texts are made the same first, so that they stay so."""
    kept = "".join(it for it in composed("NFC", text) if _kind(it) != _SIGN)
    upper = "".join(map(_upper, composed("NFKC", kept).casefold()))
    # Who types in Turkish means the same letter by the capital with a dot as by the small one.
    return composed("NFKC", upper).replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "I")


def _upper(character: str) -> str:
    """Upper-case as of the frozen version: a capital that came later does not count."""
    upper = character.upper()
    return character if _UNKNOWN in _kinds(upper) else upper


# --- kinds of characters ------------------------------------------------------------------------

_LETTER: Final = "L"
_MARK: Final = "M"
_SIGN: Final = "S"
_UNKNOWN: Final = "U"


def _kinds(text: str) -> str:
    return "".join(map(_kind, text))


def _kind(character: str) -> str:
    return _KINDS[bisect(_FIRST, ord(character)) - 1]


def _runs() -> dict[int, str]:
    """The kinds of all characters: at which code point a run of which kind begins."""
    tables = ((LETTERS, _LETTER), (MARKS, _MARK), (LEFT_OUT, _SIGN))
    kinds: dict[int, str] = {}
    ends: set[int] = {0}
    for table, kind in tables:
        for run in table.split():
            first, _, last = run.partition("-")
            kinds[int(first, 16)] = kind
            ends.add(int(last or first, 16) + 1)
    return dict(sorted((dict.fromkeys(ends, _UNKNOWN) | kinds).items()))


_FIRST: Final = list(_runs())
_KINDS: Final = "".join(_runs().values())
_ASCII_SIGNS: Final = bytes(point for point in range(128) if _kind(chr(point)) == _SIGN)
