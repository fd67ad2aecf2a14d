"""What people type and paste becomes the same code, today and with every later Python."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.unicode_classes import class_of, ranges_of

from coupon_service.model import code_characters, normalization
from coupon_service.model.code_characters import LEFT_OUT, LETTERS, MARKS, UNICODE_VERSION
from coupon_service.model.normalization import (
    NO_CODE,
    CodeTooLong,
    is_code,
    normalize_code,
)

LETTERS_AND_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

FROZEN_SHA256 = "ddc054062f0859ea333efcef667cf3d9c9c0511581b70c17d617b3ae05c1c6ed"


def characters(*tables: str, run_max: int = 0x110000) -> Iterator[str]:
    """All of the tables, of long runs the ends and some between."""
    for run in " ".join(tables).split():
        first, _, last = run.partition("-")
        points = range(int(first, 16), int(last or first, 16) + 1)
        yield from map(chr, sorted({*points[:: len(points) // run_max + 1], points[-1]}))


def typed_before(text: str) -> str | None:
    """What a text was until letters of all scripts were codes; None: it was refused."""
    if text.isascii():
        code = "".join(it for it in text.upper() if it not in " -_.")
        if code.isalnum() and len(code) <= 64:
            return code
    return None


typed = st.text(st.sampled_from([*characters(LETTERS, MARKS, LEFT_OUT, run_max=400)]), max_size=12)


# --- codes of today -----------------------------------------------------------------------------


@given(st.text(f"{LETTERS_AND_DIGITS}abcxyz -_.", max_size=80))
def test_codes_of_today_stay_as_they_are(text: str) -> None:
    if (code := typed_before(text)) is not None:
        assert normalize_code(text) == code


def test_every_ascii_character_in_a_code_of_today_does_what_it_did() -> None:
    for point in range(128):
        text = f"SUMMER{chr(point)}25"
        if (code := typed_before(text)) is not None:
            assert normalize_code(text) == code


# --- what people type ---------------------------------------------------------------------------

SPACES = "\t\n\v\f\r\x85\u00a0\u1680\u2000\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
DASHES = "-_\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u00ad\ufe58\uff0d\uff3f~\u301c"
QUOTES = "'\"`´\u2018\u2019\u201a\u201c\u201d\u201e«»‹›\u2032\u2033\u02bc\uff02「」"
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u202a\u202e\u2066\u034f\ufe0f\u3164\U000e0020"
SIGNS = "!#$%&*+.?^€£¥₹‰¡¿·•…°§®★❤🎉＋％"


@pytest.mark.parametrize("unseen", [*SPACES, *DASHES, *QUOTES, *UNSEEN, *SIGNS], ids=ascii)
def test_what_is_no_letter_makes_no_difference(unseen: str) -> None:
    for text in (f"{unseen}Summer25", f"summer{unseen}{unseen}25", f"SUMMER25{unseen}"):
        assert normalize_code(text) == "SUMMER25"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("summer25\r\n", "SUMMER25"),
        ("25%OFF", "25OFF"),
        ("\uff33\uff35\uff2d\uff2d\uff25\uff32\uff12\uff15", "SUMMER25"),
        ("𝐒𝐔𝐌𝐌𝐄𝐑25", "SUMMER25"),
        ("Ⓢⓤⓜⓜⓔⓡ②⑤", "SUMMER25"),
        ("dankefür100", "DANKEFÜR100"),
        ("DANKEFU\u0308R100", "DANKEFÜR100"),
        ("DANKEFU-\u0308R100", "DANKEFÜR100"),
        ("vår20", "VÅR20"),
        ("V\N{ANGSTROM SIGN}R20", "VÅR20"),
        ("großes Glück", "GROSSESGLÜCK"),
        ("GROẞES GLÜCK", "GROSSESGLÜCK"),
        ("ὀδυσσεύς", "ὈΔΥΣΣΕΎΣ"),
        ("скидка-2025", "СКИДКА2025"),
        ("نوروز ۲۵", "نوروز۲۵"),
        ("می\u200cخواهم", "میخواهم"),
        ("दिवाली २५", "दिवाली२५"),
        ("ลดราคา", "ลดราคา"),
        ("세일 50", "세일50"),
        (unicodedata.normalize("NFD", "세일"), "세일"),
        ("ｾｰﾙ", "セール"),
        ("双十一", "双十一"),
        ("Ⅷ", "VIII"),
        ("10²", "102"),
        ("ﬁre", "FIRE"),
        ("İndirim", "INDIRIM"),
        ("ındırım", "INDIRIM"),
        ("1️⃣🎁", "1"),
        ("x" * 64, "X" * 64),
        ("-".join("x" * 64), "X" * 64),
    ],
    ids=ascii,
)
def test_a_code_is_found_as_people_write_it(text: str, code: str) -> None:
    assert normalize_code(text) == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-_. %",
        "🎉",
        "\u200b",
        "SUMMER\x0025",
        "SUMMER\x1b25",
        "SUMMER/25",
        "A,B",
        "A;B",
        "(A)",
        "A=B",
        "a@b",
        "A\uff0cB",  # a comma as well
        "SUMMER½",  # a slash is in it
        "SUMMER\ud800",
        "\N{REPLACEMENT CHARACTER}SUMMER",
        "SUMMER\ue000",  # of private use
        "SUMMER\u0378",  # not assigned
        "SUMMER\U0001e030",  # Unicode 15.0: Python 3.12 would make a letter of it
        "SUMMER\ua7cb",  # Unicode 16.0
        "\u0301SUMMER",  # a mark on nothing
        NO_CODE,
    ],
    ids=ascii,
)
def test_anything_else_cannot_be_a_code(text: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64 letters or digits") as refused:
        normalize_code(text)
    assert not isinstance(refused.value, CodeTooLong)
    assert not is_code(text)


@pytest.mark.parametrize(
    "text", ["x" * 65, "x" * 129, "A" + "-" * 128, " " * 129, "?" * 129, "ü" * 65, "ü" + "-" * 128]
)
def test_a_text_that_is_too_long_is_distinguished_from_one_that_is_no_code(text: str) -> None:
    with pytest.raises(CodeTooLong, match="expected 1 to 64"):
        normalize_code(text)


def test_what_grows_when_it_is_made_plain_is_too_long() -> None:
    with pytest.raises(CodeTooLong):
        normalize_code("\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 5)


# --- what holds for every text ------------------------------------------------------------------


@given(st.text() | typed)
def test_a_normalised_code_is_its_own_normal_form(text: str) -> None:
    if not is_code(text):
        return
    code = normalize_code(text)
    assert 1 <= len(code) <= 64
    assert normalize_code(code) == code
    assert unicodedata.is_normalized("NFKC", code)
    assert {class_of(it) for it in code} <= {"LETTERS", "MARKS"}


@given(typed)
def test_case_makes_no_difference(text: str) -> None:
    for other in (text.lower(), text.upper(), text.casefold(), text.swapcase()):
        if set(map(class_of, other)) <= {"LETTERS", "MARKS", "LEFT_OUT"}:
            assert is_code(other) == is_code(text)
            assert not is_code(text) or normalize_code(other) == normalize_code(text)


@given(st.text() | typed)
def test_composed_and_decomposed_spellings_are_one_code(text: str) -> None:
    codes = {
        normalize_code(it) if is_code(it) else None
        for form in ("NFC", "NFD")
        if len(it := unicodedata.normalize(form, text)) <= 128
    }
    assert len(codes) <= 1  # none: both are too long


@given(typed, typed, st.text(st.sampled_from([*characters(LEFT_OUT)]), max_size=3))
def test_signs_make_no_difference_wherever_they_are(left: str, right: str, signs: str) -> None:
    plain, dressed = left + right, signs + left + signs + right + signs
    if is_code(plain) and is_code(left) and is_code(right):
        assert normalize_code(dressed) == normalize_code(plain)


# --- frozen -------------------------------------------------------------------------------------


@pytest.mark.skipif(unicodedata.unidata_version != UNICODE_VERSION, reason="another Unicode")
@pytest.mark.parametrize("name", ["LETTERS", "MARKS", "LEFT_OUT"])
def test_the_tables_are_those_of_their_unicode(name: str) -> None:
    assert " ".join(getattr(code_characters, name).split()) == ranges_of(name)


def test_no_python_changes_a_code() -> None:
    # A failure here means that codes are stored that are never found again.
    digest = hashlib.sha256()
    for character in characters(LETTERS, MARKS, LEFT_OUT, run_max=2_000):
        text = f"A{character}B"
        digest.update((normalize_code(text) if is_code(text) else "").encode() + b"\n")
    assert digest.hexdigest() == FROZEN_SHA256


def test_a_capital_that_came_after_the_frozen_version_does_not_count() -> None:
    class Letter(str):
        __slots__ = ()

        def upper(self) -> str:
            return "\ua7cb"  # what Python makes of it from Unicode 16.0 on

    small = "\N{LATIN SMALL LETTER RAMS HORN}"
    assert normalization._upper(Letter(small)) == small
    assert normalize_code(small) == small
