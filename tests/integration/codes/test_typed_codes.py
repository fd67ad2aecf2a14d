"""Codes as people type and paste them: the same code in whatever spelling, or none."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import psycopg
import pytest
from grpc import StatusCode
from redis import Redis
from support.calls import ALL_OR_NOTHING, batch, item, outcomes_of, reasons_of, tried
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    unique,
)

from coupon_service.model.scopes import name_of_locks

OPTIONAL = books.LOCK_POLICY_OPTIONAL

PASTED = [
    "{}\n",
    "{}\t",
    "{}\r\n",
    "\u00a0{}",
    "{}\u2009",
    "\u200b{}\u200b",
    "\ufeff{}",
    "\u2013{}\u2014",
    "„{}“",
    "*{}!",
]

IMPOSSIBLE = [" - ", "🎁", "\u200b", "A\0B", "A/B", "SUMMER\ue000", "?", "SUMMER\U0001e030"]

BY_CODE: dict[str, Callable[[Api, str], object]] = {
    "GetCode": lambda api, code: api.get_code(code),
    "DisableCode": lambda api, code: api.disable(code),
    "EnableCode": lambda api, code: api.enable(code),
    "AssignCode": lambda api, code: api.assign(code, "u"),
    "RevokeAssignment": lambda api, code: api.revoke(code, "u"),
    "TransferAssignment": lambda api, code: api.transfer(code, "u", "v"),
    "LockCode": lambda api, code: api.lock(code, "u"),
    "RedeemCode": lambda api, code: api.redeem(code, "u"),
}


def wide(code: str) -> str:
    """The code in fullwidth letters, as a Japanese keyboard types it."""
    return "".join(chr(ord(it) - 0x21 + 0xFF01) for it in code)


@pytest.mark.parametrize("pasted", PASTED, ids=ascii)
def test_what_is_pasted_with_a_code_does_not_count(api: Api, pasted: str) -> None:
    code = api.code()
    assert api.validate(pasted.format(code), "u").valid
    assert api.redeem(pasted.format(code), "u").redemption.code == code


def test_a_code_in_fullwidth_letters_is_found(api: Api) -> None:
    code = api.code()
    assert api.validate(wide(code), "u").valid
    assert api.redeem(wide(code.lower()), "u").redemption.code == code


@pytest.mark.parametrize("word", ["dankefür", "vår", "скидка", "نوروز", "दिवाली", "세일", "双十一"])
def test_codes_of_any_script_live_as_others_do(api: Api, word: str) -> None:
    (stem,) = new_codes(1)
    typed = f"{word}-{stem}"
    code = f"{word.upper()}{stem}"
    book = api.book(codes=[typed], lock_policy=OPTIONAL)
    decomposed = unicodedata.normalize("NFD", typed)
    assert api.get_code(decomposed).code == code
    api.assign(typed, "u")
    token = api.lock(typed.upper(), "u").lock_token
    assert api.redeem(decomposed, "u", lock_token=token).redemption.code == code
    listed = codes.ListCodesRequest(book_id=book.book_id, page_size=1)
    assert [it.code for it in api.codes.ListCodes(listed).codes] == [code]
    assert [it.code for it in api.events(code=typed)] == [code] * 3


def test_signs_of_a_campaign_are_left_out(api: Api) -> None:
    (stem,) = new_codes(1)
    api.book(codes=[f"{stem}25%OFF"])
    assert api.redeem(f"{stem} 25 % off!", "u").redemption.code == f"{stem}25OFF"


def test_pages_go_on_after_a_code_of_any_script(api: Api) -> None:
    names = [f"{word}{code}" for code in new_codes(9) for word in ("ÄÖ", "你好", "𞤀", "Z")]
    book = api.draft()
    api.import_codes(book.book_id, names)
    seen: list[str] = []
    request = codes.ListCodesRequest(book_id=book.book_id, page_size=5)
    while True:
        page = api.codes.ListCodes(request)
        seen += [it.code for it in page.codes]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert sorted(seen) == sorted(names)
    exported = codes.ExportCodesRequest(book_id=book.book_id)
    assert [it.code for page in api.codes.ExportCodes(exported) for it in page.codes] == seen


@pytest.mark.one_shard
def test_postgresql_has_them_in_the_same_bucket_and_order(api: Api, server: ServerThread) -> None:
    stem = unique("order").upper().replace("-", "")
    names = [f"{stem}{word}{n}" for n in range(40) for word in ("Z", "Ä", "Я", "你", "𞤀", "ｱ")]
    book = api.draft()
    api.import_codes(book.book_id, names)
    with psycopg.connect(server.database_url) as connection:
        rows = connection.execute(
            "SELECT code, bucket, coupon_name_bucket(code)"
            " FROM coupon_codes WHERE book_id = %s ORDER BY code",
            [book.book_id],
        ).fetchall()
    assert len(rows) == len(names)
    assert [row for row in rows if row[1] != row[2]] == []
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_a_code_of_the_greatest_length_in_bytes_can_be_locked(
    api: Api, server: ServerThread
) -> None:
    (stem,) = new_codes(1)
    code = stem.ljust(64, "𞤀")
    book = api.book(codes=[code], lock_policy=OPTIONAL)
    user_id = "{👩}" * 42
    token = api.lock(code, user_id).lock_token
    url = server.settings.redis_url
    assert url is not None
    with Redis.from_url(url.get_secret_value()) as redis:
        name = name_of_locks(code, book.book_id)
        assert redis.exists(f"coupon:{{{name}}}:places") == 1
    assert api.redeem(code, user_id, lock_token=token).redemption.code == code


# --- what cannot be a code ----------------------------------------------------------------------


@pytest.mark.parametrize("typed", IMPOSSIBLE, ids=ascii)
@pytest.mark.parametrize("method", BY_CODE)
def test_what_cannot_be_a_code_is_not_found(api: Api, method: str, typed: str) -> None:
    with refused("CODE_NOT_FOUND", StatusCode.NOT_FOUND):
        BY_CODE[method](api, typed)


@pytest.mark.parametrize("typed", IMPOSSIBLE, ids=ascii)
def test_what_cannot_be_a_code_is_a_problem_of_a_dry_run(api: Api, typed: str) -> None:
    book = api.book(codes=1, code_format=books.CodeFormat(check_character=True))
    for book_id in ("", book.book_id):
        answer = api.validate(typed, "u", book_id=book_id)
        assert (answer.valid, reasons_of(answer)) == (False, ["CODE_NOT_FOUND"])
        assert answer.book_id == ""


def test_a_batch_has_room_for_several_of_them(api: Api) -> None:
    code = api.code()
    items = [item(typed, "u") for typed in (IMPOSSIBLE[0], code, *IMPOSSIBLE[1:3])]
    missing = "CODE_NOT_FOUND"
    assert outcomes_of(batch(api, items)) == [missing, "OK", missing, missing]
    answer = batch(api, [item(api.code(), "u"), item("🎁", "u")], ALL_OR_NOTHING)
    assert outcomes_of(answer) == [missing, missing]


@pytest.mark.parametrize("typed", IMPOSSIBLE, ids=ascii)
def test_lists_by_what_cannot_be_a_code_are_empty(api: Api, typed: str) -> None:
    user_id = unique("user")
    api.redeem(api.code(), user_id)
    assert list(api.events(code=typed)) == []
    for request in (
        redemptions.ListRedemptionsRequest(code=typed),
        redemptions.ListRedemptionsRequest(code=typed, user_id=user_id),
    ):
        assert list(api.redemptions.ListRedemptions(request).redemptions) == []
    both = audit.ListAuditEventsRequest(code=typed, user_id=user_id)
    assert list(api.audit.ListAuditEvents(both).events) == []


def test_only_what_is_too_long_is_a_bad_request(api: Api) -> None:
    for typed in ("A" * 65, "ü" * 65, "-" * 129, "🎁" * 129):
        with refused("INVALID_ARGUMENT") as it:
            api.redeem(typed, "u")
        assert it.fields == ["code"]
        assert tried(lambda it=typed: api.validate(it, "u")) == "INVALID_ARGUMENT"
