"""ChangeCodes: many codes are disabled, enabled, deleted or revoked, in chunks and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import psycopg
import pytest
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from support.calls import reason_name
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    new_codes,
    refused,
    unique,
)

from coupon_service.model.codes import bucket_of
from coupon_service.store.bulk.change_progress import CHUNK, ChangeProgress
from coupon_service.store.bulk.code_changes import CodeChanger

DISABLE, ENABLE = codes.CODE_CHANGE_DISABLE, codes.CODE_CHANGE_ENABLE
DELETE, REVOKE = codes.CODE_CHANGE_DELETE, codes.CODE_CHANGE_REVOKE
LARGE = 2 * CHUNK + 50
ANY_NUMBER = books.BookLimits(max_redemptions_per_code=0)


def change(
    api: Api, book_id: str, what: codes.CodeChange.ValueType, /, **fields: Any
) -> list[codes.ChangeCodesResponse]:
    """All messages. `codes`: a list; `validate_only`, `request_id`; else a filter."""
    request = codes.ChangeCodesRequest(
        book_id=book_id,
        change=what,
        request_id=fields.pop("request_id", "") or unique("request"),
        validate_only=fields.pop("validate_only", False),
    )
    if "codes" in fields:
        request.list.codes.extend(fields.pop("codes"))
    else:
        request.filter.CopyFrom(codes.CodeFilter(**fields))
    return list(api.codes.ChangeCodes(request))


def counts(messages: Sequence[codes.ChangeCodesResponse]) -> tuple[int, int]:
    """How many were changed, and how many refused."""
    assert [it.done for it in messages] == [False] * (len(messages) - 1) + [True]
    changed = sum(it.changed_count for it in messages)
    refusals = sum(len(it.refused) for it in messages)
    last = messages[-1]
    assert (changed, refusals) == (last.total_changed_count, last.total_refused_count)
    return changed, refusals


def reasons(messages: Sequence[codes.ChangeCodesResponse]) -> dict[str, str]:
    """Why codes were refused."""
    return {it.code: reason_name(it.error) for message in messages for it in message.refused}


def states(api: Api, book_id: str) -> dict[str, str]:
    """The state of each code of the book."""
    found = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book_id))
    names = codes.CouponCodeState.Name
    return {
        it.code: names(it.state).removeprefix("COUPON_CODE_STATE_")
        for page in found
        for it in page.codes
    }


@pytest.fixture(autouse=True)
def adds_up(server: ServerThread) -> Any:
    """What is stored adds up after each test."""
    yield
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection)


# --- what is done to each code --------------------------------------------------------------------


def test_codes_of_a_list_are_disabled_and_enabled_as_by_single_calls(api: Api) -> None:
    names = new_codes(4)
    (elsewhere,) = new_codes(1)
    off, assigned, used, free = names
    book = api.book(codes=names)
    api.book(codes=[elsewhere])
    api.disable(off)
    api.assign(assigned, "ann")
    api.redeem(used, "bob")
    typed = [
        f" {free[:4]}-{free[4:].lower()}",
        free,
        off,
        assigned,
        used,
        "NOSUCH",
        elsewhere,
        "a/b",
    ]
    done = change(api, book.book_id, DISABLE, codes=typed)
    assert counts(done) == (3, 4)
    assert reasons(done) == {
        off: "INVALID_STATE_TRANSITION",
        "NOSUCH": "CODE_NOT_FOUND",
        elsewhere: "CODE_NOT_FOUND",
        "a/b": "CODE_NOT_FOUND",
    }
    (about_off,) = [it for it in done[0].refused if it.code == off]
    assert about_off.error.metadata == {"state": "DISABLED"}
    assert set(states(api, book.book_id).values()) == {"DISABLED"}
    assert api.get_code(elsewhere).state == codes.COUPON_CODE_STATE_AVAILABLE
    assert api.event_names(code=free) == ["CODE_DISABLED"]

    done = change(api, book.book_id, ENABLE, codes=names)
    assert (counts(done), reasons(done)) == ((4, 0), {})
    assert states(api, book.book_id) == {
        off: "AVAILABLE",
        assigned: "ASSIGNED",
        used: "REDEEMED",
        free: "AVAILABLE",
    }


def test_only_codes_without_a_history_are_deleted(api: Api) -> None:
    names = new_codes(8)
    book = api.book(codes=names, lock_policy=books.LOCK_POLICY_OPTIONAL, limits=ANY_NUMBER)
    plain, off, assigned, revoked, redeemed, undone, locked, unlocked = names
    api.disable(off)
    api.assign(assigned, "ann")
    api.assign(revoked, "ann")
    api.revoke(revoked, "ann")
    api.redeem(redeemed, "ann")
    api.rollback(api.redeem(undone, "ann").redemption.redemption_id)
    api.lock(locked, "ann")
    api.unlock(api.lock(unlocked, "bob").lock_token)
    done = change(api, book.book_id, DELETE, codes=names)
    assert counts(done) == (2, 6)
    assert reasons(done) == dict.fromkeys(names[2:], "CODE_HAS_HISTORY")
    assert sorted(states(api, book.book_id)) == sorted(names[2:])
    assert api.stats(book.book_id).code_count == 6
    for code in (plain, off):
        with refused("CODE_NOT_FOUND"):
            api.get_code(code)
        with refused("CODE_NOT_FOUND"):
            api.redeem(code, "ann")
    (event,) = [
        it
        for it in api.events(book_id=book.book_id)
        if it.type == audit.AUDIT_EVENT_TYPE_CODES_DELETED
    ]
    assert sorted(MessageToDict(event.metadata)["codes"]) == sorted([plain, off])
    assert "refusals" not in event.metadata
    assert event.state_before == event.state_after == event.code == ""


def test_all_active_assignments_of_codes_are_revoked(api: Api) -> None:
    names = new_codes(3)
    shared, single, free = names
    limits = books.BookLimits(
        max_redemptions_per_code=0, max_redemptions_per_user_per_code=1, max_assignments_per_user=2
    )
    book = api.book(codes=names, limits=limits)
    for user in ("ann", "bob", "carol"):
        api.assign(shared, user)
    api.redeem(shared, "carol")
    api.assign(single, "ann")
    done = change(api, book.book_id, REVOKE, codes=names)
    assert counts(done) == (3, 1)
    assert reasons(done) == {free: "ASSIGNMENT_NOT_FOUND"}
    assert not any("this user" in it.error.message for one in done for it in one.refused)
    assert states(api, book.book_id) == {shared: "ASSIGNED", single: "AVAILABLE", free: "AVAILABLE"}
    request = assignments.ListAssignmentsRequest(
        book_id=book.book_id, state=assignments.ASSIGNMENT_STATE_REVOKED
    )
    revoked = api.assignments.ListAssignments(request).assignments
    assert sorted((it.code, it.user_id) for it in revoked) == sorted(
        [(shared, "ann"), (shared, "bob"), (single, "ann")]
    )
    assert api.event_names(code=single) == ["ASSIGNED", "REVOKED"]
    api.assign(free, "ann")  # the user has room again


def test_a_code_that_more_have_than_a_chunk_holds_is_revoked_in_several(api: Api) -> None:
    names = new_codes(3)
    book = api.book(codes=names, limits=ANY_NUMBER)
    for code, users in zip(names, (3, CHUNK + 5, 2), strict=True):
        for number in range(users):
            api.assign(code, f"user-{number}")
    done = change(api, book.book_id, REVOKE, codes=names)
    assert counts(done) == (CHUNK + 10, 0)
    assert [it.changed_count for it in done] == [CHUNK, 10]
    assert set(states(api, book.book_id).values()) == {"AVAILABLE"}


def test_a_code_that_its_users_get_again_meanwhile_is_revoked_from_them_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=ANY_NUMBER)
    users = [f"user-{number:03}" for number in range(CHUNK + 5)]
    for user_id in users:
        api.assign(code, user_id)
    work = CodeChanger.change

    async def interrupted(*arguments: Any) -> AsyncGenerator[ChangeProgress]:
        async for progress in work(*arguments):
            assert progress.number < 10, "the work does not end"
            if progress.number == 1:
                await asyncio.to_thread(lambda: [api.assign(code, it) for it in users[:CHUNK]])
            yield progress

    monkeypatch.setattr(CodeChanger, "change", interrupted)
    done = change(api, book.book_id, REVOKE, codes=[code])
    assert counts(done) == (2 * CHUNK + 5, 0)
    assert states(api, book.book_id) == {code: "AVAILABLE"}


def test_live_locks_of_disabled_codes_stay(api: Api) -> None:
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    held = api.lock(code, "ann")
    change(api, held.lock.book_id, DISABLE, codes=[code])
    with refused("CODE_DISABLED"):
        api.redeem(code, "ann", lock_token=held.lock_token)
    change(api, held.lock.book_id, ENABLE, codes=[code])
    api.redeem(code, "ann", lock_token=held.lock_token)


# --- filters --------------------------------------------------------------------------------------


def test_codes_are_chosen_by_state_prefix_and_both(api: Api) -> None:
    stem = unique("").upper().replace("-", "")[:8]
    names = [f"{stem}{kind}{number}" for kind in ("A", "B") for number in range(3)]
    book = api.book(codes=names)
    api.assign(f"{stem}A0", "ann")
    api.assign(f"{stem}B0", "ann")
    prefix, state = f" {stem.lower()}-a", codes.COUPON_CODE_STATE_AVAILABLE
    dry = change(api, book.book_id, DISABLE, prefix=prefix, state=state, validate_only=True)
    assert counts(dry) == (2, 0)
    assert counts(change(api, book.book_id, DISABLE, prefix=prefix, state=state)) == (2, 0)
    off = [code for code, state in states(api, book.book_id).items() if state == "DISABLED"]
    assert sorted(off) == [f"{stem}A1", f"{stem}A2"]
    found = change(api, book.book_id, ENABLE, state=codes.COUPON_CODE_STATE_DISABLED)
    assert counts(found) == (2, 0)


def test_only_assignments_from_before_a_time_are_revoked(api: Api) -> None:
    names = new_codes(3)
    book = api.book(codes=names, limits=ANY_NUMBER)
    api.assign(names[0], "ann")
    api.assign(names[1], "bob")
    second = api.assign(names[0], "carol").assignment.assign_time
    done = change(api, book.book_id, REVOKE, assigned_before=second)
    assert counts(done) == (2, 0)
    assert states(api, book.book_id) == {
        names[0]: "ASSIGNED",
        names[1]: "AVAILABLE",
        names[2]: "AVAILABLE",
    }
    assert counts(change(api, book.book_id, REVOKE, assigned_before=second)) == (0, 0)


def test_a_wrong_upload_is_undone_in_one_call_and_can_be_made_again(api: Api) -> None:
    kept, wrong = new_codes(5), new_codes(LARGE)
    spelled = [f"{code[:4]}-{code[4:]}".lower() for code in wrong]
    book = api.draft()
    api.import_codes(book.book_id, kept, request_id="kept")
    api.import_codes(book.book_id, spelled, request_id="wrong")
    dry = change(api, book.book_id, DELETE, upload_request_id="wrong", validate_only=True)
    assert counts(dry) == (LARGE, 0)
    assert len(states(api, book.book_id)) == LARGE + 5
    done = change(api, book.book_id, DELETE, upload_request_id="wrong")
    assert counts(done) == (LARGE, 0)
    assert len(done) == 3
    assert sorted(states(api, book.book_id)) == kept
    # The same upload again says what it did, and does nothing: another one makes them anew.
    (again,) = api.import_codes(book.book_id, spelled, request_id="wrong")
    assert (again.created_count, again.replayed) == (LARGE, True)
    assert sorted(states(api, book.book_id)) == kept
    (anew,) = api.import_codes(book.book_id, wrong, request_id="right")
    assert anew.created_count == LARGE
    assert (
        api.codes.GetCode(codes.GetCodeRequest(code=wrong[0])).coupon_code.display_code
        == (wrong[0])
    )
    assert counts(change(api, book.book_id, DELETE, upload_request_id="wrong")) == (0, 0)


def test_what_codes_say_for_themselves_is_deleted_with_them(api: Api, server: ServerThread) -> None:
    plain, own = new_codes(2)
    book = api.draft()
    row = codes.NewCode(code=f"{own[:3]}-{own[3:]}", terms=codes.CodeTerms(max_redemptions=5))
    api.import_codes(book.book_id, [codes.NewCode(code=plain), row], request_id="wrong")
    assert counts(change(api, book.book_id, DELETE, upload_request_id="wrong")) == (2, 0)
    with psycopg.connect(server.database_url) as connection:
        for table in ("coupon_codes", "coupon_code_spellings", "coupon_code_terms"):
            found = connection.execute(
                f"SELECT count(*) FROM {table} WHERE code = ANY(%s)".encode(), [[plain, own]]
            ).fetchone()
            assert found == (0,), table
    api.import_codes(book.book_id, [own], request_id="right")
    assert api.get_code(own).max_redemptions == 1


def test_generated_codes_are_deleted_by_their_request_and_leave_room_for_others(api: Api) -> None:
    book = api.draft(code_format={"length": 4, "alphabet": "ABCDE"})

    def generate(request_id: str) -> None:
        list(
            api.codes.GenerateCodes(
                codes.GenerateCodesRequest(book_id=book.book_id, count=300, request_id=request_id)
            )
        )

    generate("first")
    with refused("CODE_SPACE_EXHAUSTED"):
        generate("second")
    assert counts(change(api, book.book_id, DELETE, upload_request_id="first")) == (300, 0)
    generate("second")
    assert api.stats(book.book_id).available_count == 300


def test_an_upload_that_is_not_known_is_refused(api: Api) -> None:
    book = api.book(codes=3)
    with refused("UPLOAD_NOT_FOUND", StatusCode.NOT_FOUND):
        change(api, book.book_id, DELETE, upload_request_id="nothing")


def test_uploads_that_mark_their_codes_in_the_same_way_are_told_apart_or_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = api.draft()
    api.import_codes(book.book_id, new_codes(2), request_id="one")
    api.import_codes(book.book_id, new_codes(2), request_id="other")
    monkeypatch.setattr("coupon_service.store.bulk.code_filter.source_tag", lambda *_: 7)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with refused("UPLOAD_AMBIGUOUS", StatusCode.FAILED_PRECONDITION):
        change(api, book.book_id, DELETE, upload_request_id="one")
    assert api.stats(book.book_id).available_count == 4


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["filter"]),
    ({"codes": []}, ["list.codes"]),
    ({"codes": ["X"] * 1_001}, ["list.codes"]),
    ({"codes": ["", "x" * 129]}, ["list.codes[0]", "list.codes[1]"]),
    ({"prefix": "a/b"}, ["filter.prefix"]),
    ({"state": codes.COUPON_CODE_STATE_LOCKED}, ["filter.state", "filter"]),
    ({"upload_caller": "shop"}, ["filter.upload_caller", "filter"]),
]


@pytest.mark.parametrize(("fields", "bad"), BAD, ids=range(len(BAD)))
def test_a_bad_target_is_refused(api: Api, fields: dict[str, Any], bad: list[str]) -> None:
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        change(api, api.draft().book_id, DELETE, **fields)
    assert it.fields == bad


def test_book_change_target_and_request_id_are_required(api: Api) -> None:
    with refused("INVALID_ARGUMENT") as it:
        list(api.codes.ChangeCodes(codes.ChangeCodesRequest()))
    assert it.fields == ["book_id", "request_id", "change", "filter"]


# --- once -----------------------------------------------------------------------------------------


def test_a_repeat_is_answered_as_before_and_changes_nothing(api: Api) -> None:
    names = new_codes(LARGE)
    book = api.book(codes=names)
    api.assign(names[0], "ann")
    asked: dict[str, Any] = {"state": codes.COUPON_CODE_STATE_AVAILABLE, "request_id": "job"}
    first = change(api, book.book_id, DISABLE, **asked)
    assert counts(first) == (LARGE - 1, 0)
    api.enable(names[1])
    events = len(api.events(book_id=book.book_id))
    again = change(api, book.book_id, DISABLE, **asked)
    assert {it.replayed for it in first} == {False}
    assert {it.replayed for it in again} == {True}
    for message in again:
        message.replayed = False
    assert again == first
    assert len(api.events(book_id=book.book_id)) == events
    for what, other in ((ENABLE, asked), (DISABLE, {**asked, "prefix": "A"})):
        with refused("REQUEST_ID_REUSED"):
            change(api, book.book_id, what, **other)


def test_a_call_that_broke_off_goes_on_after_the_last_committed_chunk(api: Api) -> None:
    names = new_codes(LARGE)
    book = api.book(codes=names)
    used = min(names, key=lambda it: (bucket_of(it), it))  # in the first chunk
    api.redeem(used, "ann")
    request = codes.ChangeCodesRequest(book_id=book.book_id, change=DELETE, request_id="job")
    request.filter.upload_request_id = api.events(
        book_id=book.book_id, types=[audit.AUDIT_EVENT_TYPE_CODES_IMPORTED]
    )[0].request_id
    stream = api.codes.ChangeCodes(request)
    first = next(stream)
    stream.cancel()
    rest = list(api.codes.ChangeCodes(request))
    assert rest[0].replayed
    assert rest[0].refused == first.refused
    assert counts(rest) == (LARGE - 1, 1)
    assert states(api, book.book_id) == {used: "REDEEMED"}


def test_the_same_call_twice_at_once_has_one_effect(api: Api, server: ServerThread) -> None:
    names = new_codes(LARGE)
    book = api.book(codes=names)
    request = codes.ChangeCodesRequest(
        book_id=book.book_id,
        change=DISABLE,
        request_id="job",
        filter=codes.CodeFilter(state=codes.COUPON_CODE_STATE_AVAILABLE),
    )
    streams = [api.codes.ChangeCodes(request) for _ in range(3)]
    for messages in map(list, streams):
        assert counts(messages) == (LARGE, 0)
    with psycopg.connect(server.database_url) as connection:
        rows = connection.execute(
            "SELECT type, count(*) FROM redemption_audit WHERE book_id = %s AND type IN (8, 24)"
            " GROUP BY type ORDER BY type",
            [book.book_id],
        ).fetchall()
    assert rows == [(8, LARGE), (24, 3)]


def test_a_search_that_finds_nothing_tells_how_far_it_is(api: Api) -> None:
    book = api.draft()
    list(
        api.codes.GenerateCodes(
            codes.GenerateCodesRequest(book_id=book.book_id, count=4_500, request_id="many")
        )
    )
    done = change(api, book.book_id, DISABLE, state=codes.COUPON_CODE_STATE_REDEEMED)
    assert counts(done) == (0, 0)
    assert done[-1].total_examined_count == 0
    done = change(api, book.book_id, DISABLE, prefix="NOSUCHPREFIX")
    assert [it.chunk_number for it in done] == [0, 0, 1]
    assert [it.total_examined_count for it in done] == [2_000, 4_000, 4_500]
