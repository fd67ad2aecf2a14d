"""Coupon codes as text: buckets, formats, check characters and generation.

Everything here is pure; randomness comes in as an argument.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from coupon_service.errors import CodeChecksumInvalid, CodeSpaceExhausted, FieldViolation
from coupon_service.model.normalization import CODE_LENGTH_MAX

BUCKETS = 64
"""How many buckets the codes are spread over."""

SEPARATORS = " -_."
"""The characters that a format may show a code with; like other signs, none of them counts."""

DEFAULT_ALPHABET = "23456789BCDFGHJKMNPQRSTVWXZ"
"""Digits and upper-case letters without 0, O, 1, I and L, which look alike, and without vowels and
Y, so that no code spells a word: 27 characters, an odd number (see `check_character_for`)."""

EARLIER_DEFAULT_ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""The default until it lost its vowels. Books that were made with it keep it."""

RandomSource = Callable[[int], bytes]
"""Returns that many unpredictable bytes; ``os.urandom`` in production."""


@lru_cache(4_096)  # a command asks seven times
def bucket_of(code: str) -> int:
    """The bucket, 0 to 63, of a normalised code: the low six bits of the CRC-32 of its UTF-8.

    It is stored as the first column of every key that belongs to a code, so it can never change.
    PostgreSQL computes the same with ``coupon_name_bucket(code)``. Source: IEEE 802.3.
    """
    return zlib.crc32(code.encode()) & (BUCKETS - 1)


@dataclass(frozen=True, slots=True)
class CodeFormat:
    """The shape of the codes that are generated for a coupon book.

    A code is ``prefix``, ``length`` random characters of ``alphabet``, a check character when
    there is to be one, and ``suffix``. ``separator`` is only for display: between prefix, body
    and suffix, and after every ``group_size`` characters of the body (0: not in the body).
    """

    length: int = 12
    alphabet: str = DEFAULT_ALPHABET
    prefix: str = ""
    suffix: str = ""
    separator: str = ""
    group_size: int = 0
    check_character: bool = False

    def __post_init__(self) -> None:
        for name in ("alphabet", "prefix", "suffix"):
            text: str = getattr(self, name)
            if text.isascii():
                object.__setattr__(self, name, text.upper())

    @property
    def capacity(self) -> int:
        """How many different codes there are (of a format without violations)."""
        return len(self.alphabet) ** self.length

    @property
    def entropy_bits(self) -> float:
        """How hard a code is to guess: the binary logarithm of the capacity."""
        return self.length * math.log2(len(self.alphabet))

    def violations(self) -> tuple[FieldViolation, ...]:
        """Everything that is wrong with the format; empty when codes can be made of it."""
        total = len(self.prefix) + self.length + self.check_character + len(self.suffix)
        rules = (
            ("length", 4 <= self.length <= 32, "expected 4 to 32 random characters"),
            (
                "alphabet",
                2 <= len(self.alphabet) == len(set(self.alphabet)) and _is_plain(self.alphabet),
                "expected 2 to 36 different characters of A-Z and 0-9",
            ),
            (
                "prefix",
                not self.prefix or _is_plain(self.prefix),
                "expected only A-Z and 0-9; a separator goes into the field separator",
            ),
            (
                "suffix",
                not self.suffix or _is_plain(self.suffix),
                "expected only A-Z and 0-9; a separator goes into the field separator",
            ),
            (
                "separator",
                not self.separator or (len(self.separator) == 1 and self.separator in SEPARATORS),
                "expected nothing, or one of: - _ . and the space",
            ),
            (
                "group_size",
                0 <= self.group_size <= 32,
                "expected 0 to 32 characters",
            ),
            (
                "group_size",
                not self.group_size or bool(self.separator),
                "expected 0, because there is no separator to group with",
            ),
            (
                "length",
                total <= CODE_LENGTH_MAX or self.length > 32,
                f"expected at most {CODE_LENGTH_MAX} characters with all around it, not {total}",
            ),
        )
        return tuple(FieldViolation(field, text) for field, holds, text in rules if not holds)

    def matches(self, code: str) -> bool:
        """Whether a normalised code could have been generated with this format."""
        body = self._body(code)
        return body is not None and self._check_fits(body)

    def verify(self, code: str) -> None:
        """Tell a mistyped code from one that never was; for a code that was not found.

        A code of another shape passes: it may have been imported.

        Raises:
            CodeChecksumInvalid: it has the shape of this format, but its check character is wrong.
        """
        body = self._body(code)
        if body is not None and not self._check_fits(body):
            raise CodeChecksumInvalid

    def display(self, code: str) -> str:
        """The normalised code with its separators; unchanged when it is of another shape."""
        body = self._body(code)
        if body is None:
            return code
        size = self.group_size or len(body)
        groups = [body[start : start + size] for start in range(0, len(body), size)]
        return self.separator.join(part for part in (self.prefix, *groups, self.suffix) if part)

    def _body(self, code: str) -> str | None:
        """The random characters with the check character, if the code has this shape."""
        end = len(code) - len(self.suffix)
        body = code[len(self.prefix) : end]
        # strip() leaves something over exactly when a character is outside the alphabet.
        fits = (
            len(body) == self.length + self.check_character
            and code.startswith(self.prefix)
            and code.endswith(self.suffix)
            and not body.strip(self.alphabet)
        )
        return body if fits else None

    def _check_fits(self, body: str) -> bool:
        return not self.check_character or body[-1] == check_character_for(self.alphabet, body[:-1])


def check_character_for(alphabet: str, body: str) -> str:
    """The character to put behind ``body`` so that one mistyped character is always found.

    Source: ISO/IEC 7064:2003, with the alphabet's N characters standing for 0 to N-1. For an even
    N its hybrid system MOD N+1,N (the standard's own are 11,10, 27,26 and 37,36). That doubles
    modulo N+1, which can only be undone when N is even, so an odd N gets the pure system of
    modulus N and radix 2 (as MOD 11-2 and 37-2), which needs an odd modulus. It also finds every
    exchange of two neighbours, the hybrid one 98 % of them or more from N = 10 on.
    """
    n = len(alphabet)
    value_of = alphabet.index
    if n % 2:
        total = 0
        for character in body:
            total = (total + value_of(character)) * 2
        return alphabet[(1 - total) % n]
    product = n
    for character in body:
        product = ((product + value_of(character)) % n or n) * 2 % (n + 1)
    return alphabet[(1 - product) % n]


def check_capacity(code_format: CodeFormat, existing: int, wanted: int) -> None:
    """Refuse to fill more than half of the possible codes.

    Up to there a random code is new with a chance of at least one half, so that generation needs
    two tries a code at worst, and a guess stays unlikely to hit.

    Raises:
        CodeSpaceExhausted: metadata ``capacity``, ``existing`` (those included that are being
            made), ``requested`` and ``max_codes`` (how many codes the format allows in all).
    """
    capacity = code_format.capacity
    max_codes = capacity // 2
    if existing + wanted > max_codes:
        raise CodeSpaceExhausted(
            f"The code format allows {max_codes} codes (half of its {capacity} combinations);"
            f" {existing} exist or are being made, and {wanted} more were asked for."
            " A longer code or a larger alphabet allows more.",
            capacity=capacity,
            existing=existing,
            requested=wanted,
            max_codes=max_codes,
        )


def generate(
    code_format: CodeFormat,
    count: int,
    *,
    random: RandomSource = os.urandom,
) -> list[str]:
    """Make ``count`` different normalised codes, all in memory: call it a chunk at a time.

    ``code_format`` is one without violations; every code of it is equally likely.

    Raises:
        CodeSpaceExhausted: ``count`` is more than half of the possible codes, or ``random`` keeps
            returning the same.
    """
    check_capacity(code_format, 0, count)
    bodies: dict[str, None] = {}
    # A round finds half of what is missing or more (see check_capacity) and asks for a few extra,
    # so that a sound random source needs a handful of rounds. The bound is for a broken one.
    for _ in range(64):
        bodies |= dict.fromkeys(_draw(code_format, count - len(bodies) + 8, random))
        if len(bodies) >= count:
            break
    else:
        raise CodeSpaceExhausted("The random source does not return enough different codes.")
    return [_finish(code_format, body) for body in list(bodies)[:count]]


def _draw(code_format: CodeFormat, count: int, random: RandomSource) -> list[str]:
    """About ``count`` random strings of the alphabet, each equally likely, repeats included."""
    alphabet, length = code_format.alphabet, code_format.length
    # Bytes from the last, incomplete run of the alphabet would favour its first characters.
    fair = 256 - 256 % len(alphabet)
    letters = (alphabet * (256 // len(alphabet))).ljust(256).encode("ascii")
    unfair = bytes(range(fair, 256))
    spread = random(count * length * 256 // fair + 1).translate(letters, unfair).decode("ascii")
    return [spread[start : start + length] for start in range(0, len(spread) - length + 1, length)]


def _finish(code_format: CodeFormat, body: str) -> str:
    check = check_character_for(code_format.alphabet, body) if code_format.check_character else ""
    return f"{code_format.prefix}{body}{check}{code_format.suffix}"


def _is_plain(text: str) -> bool:
    """Whether the text consists of A-Z and 0-9."""
    return text.isascii() and text.isalnum() and text == text.upper()
