"""The signed lock token."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.errors import LockTokenMismatch
from coupon_service.locks.token import sign, verify
from coupon_service.model import LockClaims

SECRET = b"the first secret"
ROTATED = b"the second secret"
CLAIMS = LockClaims(
    lock_id=UUID(int=1),
    code="SUMMER25",
    book_id=UUID(int=2),
    user_id="user-1",
    fence=17,
    expire_ms=1_800_000_000_000,
)

ids = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
claims = st.builds(
    LockClaims,
    lock_id=st.uuids(),
    code=ids,
    book_id=st.uuids(),
    user_id=ids,
    fence=st.integers(0, 2**63 - 1),
    expire_ms=st.integers(0, 2**53),
)


@given(claims)
def test_a_token_says_what_was_signed(signed: LockClaims) -> None:
    assert verify(sign(signed, SECRET), [SECRET]) == signed


def test_a_token_fits_into_a_url_as_it_is() -> None:
    token = sign(CLAIMS, SECRET)

    assert token.replace("-", "").replace("_", "").isalnum()
    assert token.isascii()


def test_a_token_is_good_for_every_secret_in_use() -> None:
    assert verify(sign(CLAIMS, SECRET), [ROTATED, SECRET]) == CLAIMS


def test_while_the_secret_is_changed_in_three_rollouts_every_replica_accepts_every_token() -> None:
    rollouts = ([SECRET], [SECRET, ROTATED], [ROTATED, SECRET], [ROTATED])
    for before, after in pairwise(rollouts):
        assert verify(sign(CLAIMS, before[0]), after) == CLAIMS
        assert verify(sign(CLAIMS, after[0]), before) == CLAIMS


@pytest.mark.parametrize("secrets", [[], [ROTATED]])
def test_a_token_of_another_secret_is_refused(secrets: list[bytes]) -> None:
    with pytest.raises(LockTokenMismatch):
        verify(sign(CLAIMS, SECRET), secrets)


def test_a_token_with_any_one_character_changed_is_refused() -> None:
    token = sign(CLAIMS, SECRET)
    for position, character in enumerate(token):
        for other in "AB_":
            if other == character:
                continue
            with pytest.raises(LockTokenMismatch):
                verify(token[:position] + other + token[position + 1 :], [SECRET])


def test_a_token_has_one_spelling() -> None:
    # The claims are a byte longer each time: every number of spare bits in the last character.
    for filler in ("", "x", "xx"):
        token = sign(replace(CLAIMS, user_id=filler), SECRET)
        for other in (
            token + "=",
            token + "==",
            token + "A",
            token + "\n",
            " " + token,
            token[:-1],
        ):
            with pytest.raises(LockTokenMismatch):
                verify(other, [SECRET])
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        for character in last.replace(token[-1], ""):
            with pytest.raises(LockTokenMismatch):
                verify(token[:-1] + character, [SECRET])


@given(st.text(max_size=300))
def test_whatever_is_no_token_is_a_mismatch(text: str) -> None:
    with pytest.raises(LockTokenMismatch):
        verify(text, [SECRET])


@pytest.mark.parametrize("text", ["", "A", "=", "é", "\0", "\ud800", "A" * 3000, "lock1"])
def test_malformed_and_oversized_tokens_are_a_mismatch(text: str) -> None:
    with pytest.raises(LockTokenMismatch):
        verify(text, [SECRET])


def test_a_seal_for_another_purpose_is_no_lock() -> None:
    payload = b"page1\0SUMMER25\0b\0u\0l\x001\x001"
    seal = hmac.digest(SECRET, payload, "sha256")
    other = urlsafe_b64encode(payload + seal).rstrip(b"=").decode()

    with pytest.raises(LockTokenMismatch):
        verify(other, [SECRET])


def test_an_id_cannot_smuggle_in_another_claim() -> None:
    with pytest.raises(ValueError, match="NUL"):
        sign(replace(CLAIMS, user_id="user\0lock"), SECRET)
