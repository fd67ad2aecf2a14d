"""What has to catch the mutants of changes of many codes."""

from __future__ import annotations

from typing import Any

from mutants.harness import CALLERS, ROUNDS, Stack
from mutants.meeting import one_within_another
from support.service import books, codes, new_codes, unique


def change(it: Stack, book_id: str, what: codes.CodeChange.ValueType, **wanted: Any) -> Any:
    """The messages of a change of the codes that match."""
    request = codes.ChangeCodesRequest(
        book_id=book_id,
        change=what,
        request_id=unique("request"),
        filter=codes.CodeFilter(**wanted),
    )
    return list(it.apis[0].codes.ChangeCodes(request))


def deletion_of_a_locked_code(it: Stack) -> None:
    """A code that somebody has locked is not deleted."""
    api, names = it.apis[0], new_codes(2)
    book = api.book(codes=names, lock_policy=books.LOCK_POLICY_OPTIONAL)
    held = api.lock(names[0], "user")
    (done,) = change(it, book.book_id, codes.CODE_CHANGE_DELETE, prefix="T")
    assert (done.changed_count, len(done.refused)) == (1, 1), done
    api.redeem(names[0], "user", lock_token=held.lock_token)
    it.conserved()


def deletions_beside_redemptions(it: Stack) -> None:
    """A code is either redeemed or deleted."""
    (code,) = new_codes(1)
    alone = it.apis[0].book(codes=[code]).book_id
    one_within_another(
        it.database_url,
        lambda: it.apis[1].redeem(code, "user"),
        lambda: change(it, alone, codes.CODE_CHANGE_DELETE, prefix="T"),
    )
    it.conserved()
    for _ in range(ROUNDS):
        names = new_codes(CALLERS - 1)
        book = it.apis[0].book(codes=names)

        def call(api: Any, n: int, names: list[str] = names, book_id: str = book.book_id) -> object:
            if n:
                return api.redeem(names[n - 1], "user")
            return change(it, book_id, codes.CODE_CHANGE_DELETE, prefix="T")

        it.all_at_once(call)
        it.conserved()


def change_that_is_resumed(it: Stack) -> None:
    """A call that goes on counts each code once."""
    api, names = it.apis[0], new_codes(450)
    book = api.book(codes=names)
    request = codes.ChangeCodesRequest(
        book_id=book.book_id,
        change=codes.CODE_CHANGE_DISABLE,
        request_id=unique("request"),
        filter=codes.CodeFilter(prefix="T"),
    )
    stream = api.codes.ChangeCodes(request)
    next(stream)
    stream.cancel()
    last = list(it.apis[1].codes.ChangeCodes(request))[-1]
    found = last.total_changed_count, last.total_refused_count, last.total_examined_count
    assert found == (450, 0, 450), last


def deletion_of_an_upload(it: Stack) -> None:
    """Of a large book only the codes of the upload are deleted."""
    api = it.apis[0]
    book = api.draft()
    generate = codes.GenerateCodesRequest(book_id=book.book_id, count=4_500, request_id="kept")
    list(api.codes.GenerateCodes(generate))
    api.import_codes(book.book_id, new_codes(40), request_id="wrong")
    change(it, book.book_id, codes.CODE_CHANGE_DELETE, upload_request_id="wrong")
    left = api.stats(book.book_id).code_count
    assert left == 4_500, left
    it.conserved()
