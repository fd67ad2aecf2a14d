"""Normalization of typed and pasted codes, and of ids. Pure."""

from __future__ import annotations

from bisect import bisect
from typing import Final
from unicodedata import normalize as composed

from coupon_service.model.code_characters import LEFT_OUT, LETTERS, MARKS

CODE_LENGTH_MAX: Final = 64
"""The longest normalised code, in characters."""

TYPED_CODE_LENGTH_MAX: Final = 128
"""The longest text that is accepted as a code, in characters."""

EXPECTED: Final = (
    f"expected 1 to {CODE_LENGTH_MAX} letters or digits;"
    " case, spaces, dashes, quotes and signs such as % do not count"
)

NO_CODE: Final = "?"
"""Replaces a text that cannot be a code. It is not a normalised code, so that no code equals it."""

ROUNDS_MAX: Final = 8
"""Limit of rounds until folding reaches a fixed point. All known texts need three or fewer."""


ID_LENGTH_MAX: Final = 128
"""The longest id that a caller gives to a user, an order or a business, in characters."""

SENT_ID_LENGTH_MAX: Final = 4 * ID_LENGTH_MAX
"""The longest text that is read as one: a letter can come in four characters."""

_AROUND: Final = (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
    "\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # of the direction
)
"""Invisible characters that are copied with a code."""


class CodeTooLong(ValueError):
    """The text, or its normalised form, is too long for a code."""


def normalize_code(text: str) -> str:
    """The normalised form of a code that a person typed or pasted, which is stored and looked up.

    It is the same for every spelling: compatibility forms become plain and composed (NFKC), letters
    become upper-case, and spaces, dashes, quotes, signs such as % and invisible characters are left
    out. Letters and digits of any script stay. Normalization is idempotent. The result never
    depends on the version of Python: see `code_characters.py`.

    Raises:
        CodeTooLong: more than 128 characters, or more than 64 in the normalised form.
        ValueError: it cannot be a code, or its normalised form is empty. The message says what was
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


def spelling_of(text: str) -> str:
    """The spelling of a code for display: composed (NFC), without surrounding spaces, quotes and
    invisible characters, which files and programs add."""
    shown = text.strip().strip(_AROUND)
    if len(shown) > 1 and shown[0] == shown[-1] == '"':  # as CSV quotes a cell
        shown = shown[1:-1].strip()
    return composed("NFC", shown)


def is_code(text: str) -> bool:
    """Whether the text can be a code."""
    try:
        normalize_code(text)
    except ValueError:
        return False
    return True


def canonical_id(text: str) -> str:
    """The id as it is stored and compared: in NFC, so that José is one user whether the é came as
    one character or as two. Upper and lower case differ. A text that is too long stays as it is."""
    if text.isascii() or len(text) > SENT_ID_LENGTH_MAX:
        return text
    return composed("NFC", text)


def id_spellings(text: str) -> tuple[str, ...]:
    """The id, and what the ledger may have in its place from before ids were compared in NFC."""
    if text.isascii():
        return (text,)
    return tuple(dict.fromkeys((text, composed("NFD", text))))


def _refusal(text: str) -> ValueError:
    return (CodeTooLong if len(text) > TYPED_CODE_LENGTH_MAX else ValueError)(EXPECTED)


def _normalize_any_script(text: str) -> str:
    if len(text) > TYPED_CODE_LENGTH_MAX:  # checked first: composing is quadratic in the length
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
    """One round. Starts with NFC, so that canonically equal texts have the same result."""
    kept = "".join(it for it in composed("NFC", text) if _kind(it) != _SIGN)
    upper = "".join(map(_upper, composed("NFKC", kept).casefold()))
    # In Turkish the capital I with a dot is the upper case of the plain small i.
    return composed("NFKC", upper).replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "I")


def _upper(character: str) -> str:
    """The upper case by the frozen version, which ignores capitals that later versions added."""
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
    """The kinds of all characters: the first code point of each run, and its kind."""
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
