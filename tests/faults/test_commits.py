"""The line to PostgreSQL is cut at a COMMIT: before it, while it hangs, or before its reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from faults.proxy import Commit, Proxy, Rule
from grpc import StatusCode
from support.calls import item, tried
from support.hanging_commits import hanging_commits
from support.service import (
    Api,
    ServerThread,
    assignments,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    settings_for,
)
from support.waiting import until

from coupon_service.store.bulk import lane


@pytest.fixture(scope="module")
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(postgres_url).port or 5432, postgres=True) as made:
        yield made


@pytest.fixture
def api(
    request: pytest.FixtureRequest, proxy: Proxy, database_url: str, redis_url: str
) -> Iterator[Api]:
    """A client of a server with so many attempts of a transaction."""
    settings = settings_for(
        proxy.url(database_url),
        redis_url,
        transaction_attempts_max=request.param,
        lock_timeout_ms=200,
    )
    with ServerThread(settings) as server, closing(Api(server.address)) as made:
        until(lambda: tried(made.draft) == "OK")
        yield made


def effects(api: Api, code: str) -> tuple[int, list[str]]:
    """The redemptions of a code by its count and by the ledger."""
    until(lambda: tried(lambda: api.get_code(code)) == "OK")
    return api.get_code(code).redemption_count, api.event_names(code=code)


@pytest.mark.parametrize("api", [1], indirect=True)
@pytest.mark.parametrize(("where", "done"), [(Commit.BEFORE, 0), (Commit.AFTER, 1)])
def test_retry_resolves_the_unknown_outcome_of_a_commit(
    api: Api, proxy: Proxy, where: Commit, done: int
) -> None:
    code = api.code()
    request = api.redeem_request(code, "ann")
    cut_before = proxy.commits_cut
    proxy.rule = Rule(commit=where)
    with refused("DATABASE_UNAVAILABLE", StatusCode.UNAVAILABLE) as it:
        api.redemptions.RedeemCode(request)
    assert it.retry_after_s
    assert proxy.commits_cut == cut_before + 1
    assert effects(api, code) == (done, ["REDEEMED"] * done)
    answer = api.redemptions.RedeemCode(request)
    assert answer.replayed is bool(done)
    assert effects(api, code) == (1, ["REDEEMED"])


@pytest.mark.parametrize("api", [3], indirect=True)
@pytest.mark.parametrize("where", list(Commit))
def test_server_resolves_it_before_the_client_notices(
    api: Api, proxy: Proxy, where: Commit
) -> None:
    code = api.code()
    cut_before = proxy.commits_cut
    proxy.rule = Rule(commit=where)
    redemption = api.redeem(code, "ann").redemption
    assert proxy.commits_cut == cut_before + 1
    assert effects(api, code) == (1, ["REDEEMED"])
    proxy.rule = Rule(commit=where)
    api.rollback(redemption.redemption_id)
    assert proxy.commits_cut == cut_before + 2
    assert effects(api, code) == (0, ["REDEEMED", "ROLLED_BACK"])


@pytest.mark.parametrize("api", [1], indirect=True)
@pytest.mark.parametrize(("where", "done"), [(Commit.BEFORE, 0), (Commit.AFTER, 1)])
@pytest.mark.parametrize("repeat", ["lock", "another"])
def test_lock_of_unknown_outcome_keeps_others_out_until_its_user_comes_again(
    api: Api, proxy: Proxy, where: Commit, done: int, repeat: str
) -> None:
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    proxy.rule = Rule(commit=where)
    with refused("DATABASE_UNAVAILABLE", StatusCode.UNAVAILABLE):
        api.lock(code, "ann", request_id="lock")
    assert effects(api, code) == (0, ["LOCKED"] * done)
    with refused("CODE_LOCKED"):
        api.lock(code, "bob")
    held = api.lock(code, "ann", request_id=repeat)
    assert held.replayed is bool(done)
    again = api.lock(code, "ann", request_id="lock")
    assert (again.lock, again.replayed) == (held.lock, True)
    with refused("CODE_LOCKED"):
        api.lock(code, "bob")
    api.redeem(code, "ann", lock_token=held.lock_token)
    assert {it.lock_id for it in api.events(code=code)} == {held.lock.lock_id}


# --- a COMMIT that hangs ------------------------------------------------------------------------

Request = tuple[Callable[[Any], Any], Any]


def redeem(api: Api) -> Request:
    return api.redemptions.RedeemCode, api.redeem_request(api.code(), "ann")


def redeem_many(api: Api) -> Request:
    names = new_codes(300)
    api.book(codes=names)
    items = [item(name, "ann") for name in names]
    request = redemptions.BatchRedeemCodesRequest(
        items=items, mode=redemptions.BATCH_MODE_ALL_OR_NOTHING, request_id="batch"
    )
    return api.redemptions.BatchRedeemCodes, request


def roll_back(api: Api) -> Request:
    done = api.redeem(api.code(), "ann").redemption.redemption_id
    request = redemptions.RollbackRedemptionRequest(redemption_id=done, request_id="back")
    return api.redemptions.RollbackRedemption, request


def lock(api: Api) -> Request:
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    request = redemptions.LockCodeRequest(code=code, user_id="ann", request_id="lock")
    return api.redemptions.LockCode, request


def assign_random(api: Api) -> Request:
    book = api.book(codes=20)
    request = assignments.AssignRandomCodeRequest(
        book_id=book.book_id, user_id="ann", request_id="assign"
    )
    return api.assignments.AssignRandomCode, request


def create_book(api: Api) -> Request:
    book = api.draft()
    book.ClearField("book_id")
    request = books.CreateCouponBookRequest(coupon_book=book, request_id="create")
    return api.books.CreateCouponBook, request


def pause_book(api: Api) -> Request:
    request = books.PauseCouponBookRequest(book_id=api.book().book_id, request_id="pause")
    return api.books.PauseCouponBook, request


def generate(api: Api) -> Request:
    request = codes.GenerateCodesRequest(
        book_id=api.book().book_id, count=100, request_id="generate"
    )
    return lambda it: list(api.codes.GenerateCodes(it))[-1], request


def import_chunk(api: Api) -> Request:
    book_id, names = api.book().book_id, new_codes(3)
    return lambda it: api.import_codes(book_id, names, request_id=it)[0], "upload"


@pytest.mark.parametrize("api", [3], indirect=True)
@pytest.mark.parametrize(
    "ask",
    [
        redeem,
        redeem_many,
        roll_back,
        lock,
        assign_random,
        create_book,
        pause_book,
        generate,
        import_chunk,
    ],
)
def test_commit_that_completes_after_its_line_was_cut_is_never_reported_as_undone(
    api: Api,
    proxy: Proxy,
    database_url: str,
    ask: Callable[[Api], Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "BE_PATIENT", lane.BE_PATIENT.replace("20s", "1s"))
    call, request = ask(api)
    with hanging_commits(database_url) as commits, ThreadPoolExecutor() as pool:
        answer = pool.submit(tried, lambda: call(request))
        commits.wait_for_one()
        proxy.cut()
        assert answer.result() == "DATABASE_UNAVAILABLE"  # the later tries met the row locks
        commits.release()
    until(lambda: tried(api.draft) == "OK")
    repeated = call(request)
    results = getattr(repeated, "results", [repeated])
    assert all(it.replayed for it in results)
