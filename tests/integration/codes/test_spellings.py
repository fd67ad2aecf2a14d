"""The spelling that a code was uploaded with is kept, and shown wherever the code is."""

from __future__ import annotations

import unicodedata
from typing import Any

import psycopg
import pytest
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    assignments,
    books,
    codes,
    new_codes,
    unique,
)


def spelled(code: str) -> str:
    """A code as a campaign writes it."""
    return f"{code[:1]}{code[1:5].lower()}-{code[5:]} 25%"


def exported(api: Api, book_id: str) -> dict[str, str]:
    """The codes of a book with what is shown of them."""
    pages = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book_id))
    return {it.code: it.display_code for page in pages for it in page.codes}


def kept(server: ServerThread, *names: str) -> int:
    """How many of the codes have a row for their spelling."""
    with psycopg.connect(server.database_url) as connection:
        found = connection.execute(
            "SELECT count(*) FROM coupon_code_spellings WHERE code = ANY(%s)", [list(names)]
        ).fetchone()
    assert found is not None
    return found[0]


def test_a_code_is_shown_as_it_was_uploaded(api: Api) -> None:
    (stem,) = new_codes(1)
    typed, code = spelled(stem), f"{stem}25"
    user = unique("user")
    book = api.book(codes=[typed])
    assert api.get_code(code.lower()).display_code == typed
    listed = codes.ListCodesRequest(book_id=book.book_id)
    assert [it.display_code for it in api.codes.ListCodes(listed).codes] == [typed]
    assert exported(api, book.book_id) == {code: typed}
    assert api.assign(code, user).assignment.display_code == typed
    mine = assignments.ListUserCouponsRequest(user_id=user)
    (coupon,) = api.assignments.ListUserCoupons(mine).coupons
    assert (coupon.assignment.code, coupon.assignment.display_code) == (code, typed)
    assert api.disable(code).coupon_code.display_code == typed
    assert api.enable(code).coupon_code.display_code == typed
    assert api.revoke(code, user).assignment.display_code == typed
    assert api.redeem(typed, user).redemption.code == code


def test_random_assignments_show_it_and_their_repeats_as_well(api: Api) -> None:
    names = new_codes(3)
    book = api.book(codes=[spelled(it) for it in names])
    wanted = {f"{it}25": spelled(it) for it in names}
    user, request_id = unique("user"), unique("request")
    given = api.assign_random(book.book_id, user, request_id=request_id)
    assert given.assignment.display_code == wanted.pop(given.assignment.code)
    again = api.assign_random(book.book_id, user, request_id=request_id)
    assert again.replayed
    assert again.assignment == given.assignment
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=book.book_id, user_ids=[unique("user") for _ in wanted], request_id=request_id
    )
    for replayed in (False, True):
        results = api.assignments.BatchAssignRandomCodes(request).results
        assert {it.assignment.code: it.assignment.display_code for it in results} == wanted
        assert {it.replayed for it in results} == {replayed}


def test_a_repeated_assignment_shows_it(api: Api) -> None:
    (stem,) = new_codes(1)
    api.book(codes=[spelled(stem)])
    fields: dict[str, Any] = {"code": f"{stem}25", "user_id": "u", "request_id": unique("request")}
    first = api.assign(**fields).assignment
    assert api.assign(**fields).assignment == first
    assert first.display_code == spelled(stem)


@pytest.mark.parametrize("limited", [False, True])
def test_a_book_of_limits_shows_it(api: Api, limited: bool) -> None:
    (stem,) = new_codes(1)
    limits = books.BookLimits(max_assignments_per_user=1) if limited else books.BookLimits()
    book = api.book(codes=[spelled(stem)], limits=limits)
    given = api.assign_random(book.book_id, "u").assignment
    assert given.display_code == spelled(stem)


def test_plain_codes_keep_nothing_and_look_as_their_format_says(
    api: Api, server: ServerThread
) -> None:
    names = new_codes(50)
    form = books.CodeFormat(separator="-", group_size=4)
    book = api.draft(code_format=form)
    api.import_codes(book.book_id, [f" {it}\r\n" for it in names])
    request = codes.GenerateCodesRequest(book_id=book.book_id, count=5, request_id="r")
    list(api.codes.GenerateCodes(request))
    shown = exported(api, book.book_id)
    assert kept(server, *shown) == 0
    made = {code: it for code, it in shown.items() if code not in names}
    assert len(made) == 5
    assert all(it == f"{code[:4]}-{code[4:8]}-{code[8:]}" for code, it in made.items())
    assert all(shown[code] == code for code in names)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ("\ufeff{}-a\r\n", "{}-a"),
        ('"{}-a"', "{}-a"),
        ("\u200b{}-a\u200b", "{}-a"),
        ("{}-a\u00a0", "{}-a"),
        ("„{}-a“", "„{}-a“"),
        ("\u200e{}A", "{}A"),
        ("\u202a{}-a\u202c", "{}-a"),
    ],
    ids=ascii,
)
def test_what_a_file_puts_around_a_code_is_not_its_spelling(api: Api, row: str, shown: str) -> None:
    (stem,) = new_codes(1)
    api.book(codes=[row.format(stem)])
    assert api.get_code(f"{stem}A").display_code == shown.format(stem)


def test_a_spelling_is_shown_composed_and_one_that_only_was_not_is_none(
    api: Api, server: ServerThread
) -> None:
    (stem,) = new_codes(1)
    rows = [f"dankefür-{stem}", f"ÜBER{stem}"]
    book = api.draft()
    api.import_codes(book.book_id, [unicodedata.normalize("NFD", it) for it in rows])
    assert exported(api, book.book_id) == {f"DANKEFÜR{stem}": rows[0], rows[1]: rows[1]}
    assert kept(server, f"DANKEFÜR{stem}", rows[1]) == 1


def test_the_first_spelling_stays(api: Api, server: ServerThread) -> None:
    (stem, plain) = new_codes(2)
    book = api.draft()
    first, second = api.import_codes(
        book.book_id, [f"{stem}-a", f"{stem}_A", plain], [f"{stem}.A", f"{plain}-"]
    )
    assert (first.created_count, first.duplicate_count, second.duplicate_count) == (2, 1, 2)
    (again,) = api.import_codes(book.book_id, [f"{stem}+A", plain.lower()])
    assert again.existing_count == 2
    assert exported(api, book.book_id) == {f"{stem}A": f"{stem}-a", plain: plain}
    assert kept(server, f"{stem}A", plain) == 1


def test_of_several_uploads_at_once_the_spelling_is_that_of_the_code_that_was_made(
    api: Api,
) -> None:
    names = new_codes(200)
    ids = [api.draft().book_id for _ in range(4)]

    def upload(number: int) -> Any:
        return api.import_codes(ids[number], [f"{it}{'-' * (number + 1)}A" for it in names])

    all_at_once([lambda n=n: upload(n) for n in range(4)])
    shown = [(n, exported(api, book_id)) for n, book_id in enumerate(ids)]
    assert sum(len(of_book) for _, of_book in shown) == len(names)
    for number, of_book in shown:
        for code, it in of_book.items():
            assert it == f"{code[:-1]}{'-' * (number + 1)}A"


def test_pages_and_exports_of_many_show_each_its_own(api: Api) -> None:
    names = new_codes(2_500)
    book = api.draft()
    rows = [f"{it}-a" if index % 3 else f"{it}A" for index, it in enumerate(names)]
    api.import_codes(book.book_id, rows)
    assert set(exported(api, book.book_id).values()) == set(rows)
