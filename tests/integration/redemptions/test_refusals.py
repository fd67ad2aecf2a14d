"""Refused attempts: what support finds of them afterwards, and what is never written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from grpc import StatusCode
from integration.redemptions.test_reasons import PROVOKE, Stage, stage
from support.calls import ALL_OR_NOTHING, batch, item, reason_name, tried
from support.service import (
    Api,
    ServerThread,
    books,
    euros,
    new_codes,
    pages,
    redemptions,
    refused,
    unique,
)
from support.store import opened
from support.token_clients import caller
from support.waiting import until

from coupon_service.maintenance.refusal_pruner import RefusalPruner
from coupon_service.model import Money
from coupon_service.model.pseudonyms import Pseudonyms
from coupon_service.model.refused_attempts import AttemptKind, RefusedAttempt
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.store.refusals import (
    RefusalFilter,
    insert_refusals,
    select_refusals,
)

__all__ = ["stage"]

REDEEM = redemptions.ATTEMPT_KIND_REDEEM_CODE
OPTIONAL = books.LOCK_POLICY_OPTIONAL
LOCK = redemptions.ATTEMPT_KIND_LOCK_CODE
VALIDATE = redemptions.ATTEMPT_KIND_VALIDATE_CODE
BATCH = redemptions.ATTEMPT_KIND_BATCH_REDEEM_CODES

OF_NO_CODE = {
    "INVALID_ARGUMENT",
    "OVERLOADED",
    "DATABASE_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
}
"""Reasons that say nothing of the code."""

CONTRACT = Path(__file__).parents[3] / "proto/coupon_service/v1/redemption_service.proto"


def reasons_of_attempts() -> set[str]:
    """The reasons that the contract names for RedeemCode and LockCode, and those that every call
    with a code and a request_id has."""
    comments = re.findall(
        r"((?:  //[^\n]*\n)+)  rpc (?:RedeemCode|LockCode)\(", CONTRACT.read_text("utf-8")
    )
    assert len(comments) == 2
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", " ".join(comments)))
    return (named & PROVOKE.keys()) | {"REQUEST_ID_REUSED", "CODE_NOT_STARTED"} - OF_NO_CODE


def listed(api: Api, **filters: Any) -> list[redemptions.Refusal]:
    """All refused attempts with these filters."""
    request = redemptions.ListRefusalsRequest(**filters)
    return [it for page in pages(api.redemptions.ListRefusals, request, "refusals") for it in page]


def waited_for(api: Api, count: int, **filters: Any) -> list[redemptions.Refusal]:
    """As `listed`, once there are so many."""
    until(lambda: len(listed(api, **filters)) >= count)
    return listed(api, **filters)


def names(errors: Any) -> list[str]:
    """The reasons of a refusal."""
    return [reason_name(it) for it in errors]


def disabled(api: Api, business_id: str = "", **fields: Any) -> str:
    """A code that is refused."""
    named = {"business_id": business_id} if business_id else {}
    code = api.code(**named, **fields)
    api.disable(code, **named)
    return code


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [0, 1], ids=["call", "stream"])
def test_a_refused_redemption_is_listed_with_all_that_was_said(
    server: ServerThread, streamed: int
) -> None:
    with closing(Api(server.address, streamed=streamed)) as api:
        code, user, order = disabled(api), unique("user"), unique("order")
        before = datetime.now(UTC)
        with refused("CODE_DISABLED"):
            api.redeem(code, user, order_id=order, order_amount=euros(40), request_id="attempt-1")
        (found,) = waited_for(api, 1, order_id=order)
        assert found.kind == REDEEM
        assert (found.code, found.code_mask) == (code, "")
        assert (found.user_id, found.order_id) == (user, order)
        assert found.order_amount == euros(40)
        assert (found.caller, found.request_id) == ("anonymous", "attempt-1")
        assert names(found.told) == ["CODE_DISABLED"]
        assert found.told[0].message
        assert found.book_id == api.get_code(code).book_id
        assert found.business_id == api.get_book(found.book_id).business_id
        assert UUID(found.refusal_id)
        assert before - timedelta(seconds=1) < found.refuse_time.ToDatetime(UTC) < datetime.now(UTC)


def already_rolled_back(stage: Stage) -> object:
    request = stage.api.redeem_request(stage.api.code(), unique("user"))
    done = stage.api.redemptions.RedeemCode(request).redemption
    stage.api.rollback(done.redemption_id)
    return stage.api.redemptions.RedeemCode(request)


def lock_expired(stage: Stage) -> object:
    code, user = stage.api.code(lock_policy=OPTIONAL), unique("user")
    token = stage.api.lock(code, user).lock_token
    stage.api.unlock(token)
    return stage.api.redeem(code, user, lock_token=token)


def lock_token_mismatch(stage: Stage) -> object:
    code = stage.api.code(lock_policy=OPTIONAL)
    return stage.api.redeem(code, unique("user"), lock_token="bm90IG9uZSBvZiBvdXJz")


def invalid_state_transition(stage: Stage) -> object:
    return stage.api.lock(stage.api.code(lock_policy=books.LOCK_POLICY_OFF), unique("user"))


def code_not_found(stage: Stage) -> object:
    return stage.api.redeem(new_codes(1)[0], unique("user"))


def contention(stage: Stage) -> object:
    impatient = stage.server(lock_timeout_ms=50, transaction_attempts_max=1)
    code = stage.api.code()
    stage.hold(code)
    return impatient.redeem(code, unique("user"))


HERE = {
    function.__name__.upper(): function
    for function in (
        already_rolled_back,
        lock_expired,
        lock_token_mismatch,
        invalid_state_transition,
        code_not_found,
        contention,
    )
}
"""Ways to reasons that other calls have as well."""


@pytest.mark.parametrize("stage", [0], indirect=True, ids=["call"])
def test_every_reason_of_an_attempt_leaves_a_row(stage: Stage) -> None:
    began = to_timestamp(datetime.now(UTC) - timedelta(seconds=1))
    ways = PROVOKE | HERE
    # Where all books are of one business, some ways meet on an order, and have the same reason.
    reasons = {tried(lambda it=it: ways[it](stage)) for it in sorted(reasons_of_attempts())}
    assert len(reasons) > 30

    def kept() -> set[str]:
        found = listed(stage.api, start_time=began)
        return {reason for it in found for reason in names(it.told)}

    until(lambda: kept() >= reasons, why_not=lambda: reasons - kept())
    assert not kept() & OF_NO_CODE


def test_what_held_as_well_is_listed_though_the_caller_was_not_told(api: Api) -> None:
    code = disabled(api, min_order_amount_minor=5_000, currency_code="EUR")
    user = unique("user")
    with refused("CODE_DISABLED"):
        api.redeem(code, user, order_amount=euros(1))
    (found,) = waited_for(api, 1, user_id=user)
    assert names(found.told) == ["CODE_DISABLED"]
    assert names(found.untold) == ["ORDER_BELOW_MINIMUM"]
    assert found.untold[0].metadata["minimum_minor"] == "5000"


def test_a_refused_lock_is_listed_with_its_book(api: Api) -> None:
    code = api.code(lock_policy=OPTIONAL)
    api.lock(code, unique("holder"))
    user = unique("user")
    with refused("CODE_LOCKED"):
        api.lock(code, user)
    (found,) = waited_for(api, 1, user_id=user)
    assert (found.kind, found.code) == (LOCK, code)
    assert names(found.told) == ["CODE_LOCKED"]
    assert int(found.told[0].metadata["retry_after_ms"]) > 0
    assert found.book_id == api.get_code(code).book_id


def test_each_refused_item_of_a_batch_is_listed(api: Api) -> None:
    good, bad = new_codes(2)
    api.book(codes=[good, bad])
    api.disable(bad)
    user = unique("user")
    batch(api, [item(good, user), item(bad, user)])
    (found,) = waited_for(api, 1, user_id=user)
    assert (found.kind, found.code, names(found.told)) == (BATCH, bad, ["CODE_DISABLED"])


def test_an_item_that_another_one_refused_says_which(api: Api) -> None:
    good, bad = new_codes(2)
    api.book(codes=[good, bad])
    api.disable(bad)
    user = unique("user")
    batch(api, [item(good, user), item(bad, user)], ALL_OR_NOTHING)
    found = {it.code: it for it in waited_for(api, 2, user_id=user)}
    assert found.keys() == {good, bad}
    assert found[good].told[0].metadata["item"] == "1"
    assert found[good].book_id == found[bad].book_id != ""


def test_what_went_well_leaves_nothing(api: Api) -> None:
    user = unique("user")
    first, second, third = new_codes(3)
    api.book(codes=[first, second, third], lock_policy=OPTIONAL)
    held = api.lock(first, user)
    assert api.validate(first, user, lock_token=held.lock_token).valid
    api.redeem(first, user, lock_token=held.lock_token)
    done = api.redeem_request(second, user)
    api.redemptions.RedeemCode(done)
    assert api.redemptions.RedeemCode(done).replayed
    batch(api, [item(third, user)])
    with refused("CODE_ALREADY_REDEEMED"):  # last: once it is written, all before it would be
        api.redeem(first, user)
    (found,) = waited_for(api, 1, user_id=user)
    assert names(found.told) == ["CODE_ALREADY_REDEEMED"]


def test_a_dry_run_is_listed_once_a_minute(server: ServerThread, api: Api) -> None:
    user, code, other = unique("user"), disabled(api), disabled(api)
    clock = datetime.now(UTC).replace(second=30)
    times = [clock]
    with (
        ServerThread(server.settings, lambda: times[0]) as first,
        ServerThread(server.settings, lambda: times[0]) as second,
        closing(Api(first.address)) as one,
        closing(Api(second.address)) as another,
    ):
        for client in (one, another, one, another):
            assert not client.validate(code, user).valid
        assert not one.validate(other, user).valid
        times[0] = clock + timedelta(minutes=1)
        assert not one.validate(code, user).valid
    found = listed(api, user_id=user)
    minute = clock.replace(second=0, microsecond=0)
    times_of_code = [it.refuse_time.ToDatetime(UTC) for it in found if it.code == code]
    assert times_of_code == [minute + timedelta(minutes=1), minute]
    assert [it.kind for it in found] == [VALIDATE] * 3


# --- codes that nobody knows --------------------------------------------------------------------


def test_of_an_unknown_code_only_a_mask_and_a_keyed_hash_are_kept(
    server: ServerThread, api: Api
) -> None:
    (guess,) = new_codes(1)
    user = unique("user")
    typed = f"{guess[:5].lower()}-{guess[5:]}"
    with refused("CODE_NOT_FOUND"):
        api.redeem(typed, user)
    (found,) = waited_for(api, 1, code=guess)
    assert (found.user_id, found.code, found.book_id) == (user, "", "")
    assert found.code_mask == guess[:2] + "*" * (len(guess) - 2)
    assert listed(api, code=typed) == [found]
    assert not listed(api, code=new_codes(1)[0])
    with psycopg.connect(server.database_url) as database:
        rows = database.execute(
            "SELECT refusal::text FROM coupon_refusals AS refusal WHERE user_id = %s", [user]
        ).fetchall()
    assert len(rows) == 1
    assert guess[3:] not in rows[0][0].upper()


def test_a_code_that_has_come_to_be_is_found_by_its_attempts_of_before(api: Api) -> None:
    (code,) = new_codes(1)
    user = unique("user")
    with refused("CODE_NOT_FOUND"):
        api.redeem(code, user)
    api.book(codes=[code])
    api.disable(code)
    with refused("CODE_DISABLED"):
        api.redeem(code, user)
    found = waited_for(api, 2, code=code)
    assert [names(it.told) for it in found] == [["CODE_DISABLED"], ["CODE_NOT_FOUND"]]


def test_hashes_of_the_secret_before_are_found(server: ServerThread, api: Api) -> None:
    (guess,) = new_codes(1)
    settings = server.settings
    with refused("CODE_NOT_FOUND"):
        api.redeem(guess, unique("user"))
    waited_for(api, 1, code=guess)
    rotated = settings.model_copy(
        update={
            "lock_token_secret": type(settings.lock_token_secret)("another secret of the tests 2"),  # type: ignore[misc]
            "lock_token_secret_previous": settings.lock_token_secret,
        }
    )
    with ServerThread(rotated) as other, closing(Api(other.address)) as client:
        assert len(listed(client, code=guess)) == 1


def test_attempts_on_unknown_codes_are_not_kept_where_a_setting_says_so(
    server: ServerThread, api: Api
) -> None:
    user, known = unique("user"), disabled(api)
    settings = server.settings.model_copy(update={"refusals_unknown_codes": False})
    with ServerThread(settings) as other, closing(Api(other.address)) as client:
        with refused("CODE_NOT_FOUND"):
            client.redeem(new_codes(1)[0], user)
        assert not client.validate(new_codes(1)[0], user).valid
        with refused("CODE_DISABLED"):
            client.redeem(known, user)
    assert [it.code for it in listed(api, user_id=user)] == [known]


# --- who sees them ------------------------------------------------------------------------------


def test_what_is_hidden_from_an_end_user_is_there_for_support(guarded: ServerThread) -> None:
    business, user = unique("business"), unique("user")
    with (
        caller(guarded.address, "admin", sub="root") as root,
        caller(guarded.address, "self", sub=user, business=business) as app,
        caller(guarded.address, "auditor", business=business) as support,
    ):
        code = disabled(root, business_id=business)
        with refused("CODE_NOT_FOUND"):
            app.redeem(code, user)
        assert [it.reason for it in app.validate(code, user).problems]
        found = {it.kind: it for it in waited_for(support, 2, user_id=user)}
        assert found.keys() == {REDEEM, VALIDATE}
        for it in found.values():
            assert names(it.told) == ["CODE_NOT_FOUND"]
            assert "CODE_DISABLED" in names(it.untold)
            assert (it.code, it.caller) == (code, user)
        with refused("PERMISSION_DENIED", StatusCode.PERMISSION_DENIED):
            listed(app, user_id=user)


def test_a_business_sees_its_own_alone(guarded: ServerThread) -> None:
    mine, theirs, user, order = (unique(it) for it in ("business", "business", "user", "order"))
    with (
        caller(guarded.address, "admin", sub="root") as root,
        caller(guarded.address, "redeemer", business=mine) as till,
        caller(guarded.address, "auditor", business=mine) as support,
        caller(guarded.address, "auditor", business=theirs) as other,
    ):
        code = disabled(root, business_id=mine)
        (unknown,) = new_codes(1)
        for each in (code, unknown):
            tried(lambda each=each: till.redeem(each, user, order_id=order))
        found = waited_for(support, 2, user_id=user)
        (book_id,) = {it.book_id for it in found} - {""}
        filters: list[dict[str, Any]] = [
            {},
            {"user_id": user},
            {"order_id": order},
            {"code": code},
            {"code": unknown},
            {"book_id": book_id},
        ]
        for it in filters:
            assert listed(support, **it)
            assert not listed(other, **it)
        assert {it.business_id for it in listed(support)} == {mine}
        assert listed(root, business_id=mine) == listed(support)
        with refused("PERMISSION_DENIED"):
            listed(other, business_id=mine)


def test_who_is_limited_leaves_nothing(server: ServerThread, api: Api) -> None:
    user = unique("user")
    settings = server.settings.model_copy(update={"guess_limit_peers": "2/minute"})
    # A copy does not know what was set explicitly, and loopback is limited only then.
    settings.model_fields_set.add("guess_limit_peers")
    with ServerThread(settings) as other, closing(Api(other.address)) as client:
        reasons = [tried(lambda: client.redeem(new_codes(1)[0], user)) for _ in range(6)]
    assert reasons.count("RATE_LIMITED") >= 3
    found = [names(it.told) for it in listed(api, user_id=user)]
    assert 1 <= len(found) <= 3
    assert all(it == ["CODE_NOT_FOUND"] for it in found)


# --- lists --------------------------------------------------------------------------------------


def test_filters_are_combined_and_pages_go_on_newest_first(api: Api) -> None:
    user, other = unique("user"), unique("user")
    first, second = disabled(api), disabled(api)
    for number in range(5):
        tried(lambda number=number: api.redeem(first, user, order_id=f"{user}-{number}"))
    tried(lambda: api.redeem(second, user))
    tried(lambda: api.redeem(first, other))
    found = waited_for(api, 6, user_id=user)
    times = [it.refuse_time.ToDatetime(UTC) for it in found]
    assert times == sorted(times, reverse=True)
    request = redemptions.ListRefusalsRequest(user_id=user, code=first, page_size=2)
    paged = pages(api.redemptions.ListRefusals, request, "refusals")
    assert [len(it) for it in paged] == [2, 2, 1]
    assert [it for page in paged for it in page] == [it for it in found if it.code == first]
    assert len(waited_for(api, 6, code=first)) == 6
    book_id = api.get_code(first).book_id
    assert len(listed(api, book_id=book_id)) == 6
    assert len(listed(api, book_id=book_id, user_id=other)) == 1
    at = found[2].refuse_time
    assert listed(api, user_id=user, start_time=at) == found[:3]
    assert listed(api, user_id=user, end_time=at) == found[3:]


# --- when they are not written ------------------------------------------------------------------


def test_where_none_are_kept_nothing_is_written_and_the_list_says_what_to_set(
    server: ServerThread, api: Api
) -> None:
    user, code = unique("user"), disabled(api)
    settings = server.settings.model_copy(update={"refusals_kept_days": 0})
    with ServerThread(settings) as other, closing(Api(other.address)) as client:
        with refused("CODE_DISABLED"):
            client.redeem(code, user)
        assert not client.validate(code, user).valid
        with refused("REFUSALS_NOT_KEPT", StatusCode.FAILED_PRECONDITION) as it:
            listed(client)
        assert "COUPON_REFUSALS_KEPT_DAYS" in it.error.details()  # type: ignore[attr-defined]
    assert not listed(api, user_id=user)


def test_a_stop_writes_what_waits(server: ServerThread, api: Api) -> None:
    user, code = unique("user"), disabled(api)
    with ServerThread(server.settings) as other, closing(Api(other.address)) as client:
        with refused("CODE_DISABLED"):
            client.redeem(code, user)
    assert len(listed(api, user_id=user)) == 1


# --- the table ----------------------------------------------------------------------------------

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def attempt(number: int, **fields: Any) -> RefusedAttempt:
    """A refused attempt, so many minutes before NOW."""
    values: dict[str, Any] = {
        "refusal_id": UUID(int=number + 1),
        "refuse_time": NOW - timedelta(minutes=number),
        "kind": AttemptKind.REDEEM_CODE,
        "told": (("USER_LIMIT_EXCEEDED", {"limit": "1", "limit_name": 'a"b'}),),
        "untold": (("CODE_DISABLED", {}),),
        "code": "ABC",
        "book_id": UUID(int=7),
        "business_id": "shop",
        "user_id": "ann",
        "order_id": "order-1",
        "order_amount": Money(5, "EUR"),
        "caller": "till",
        "request_id": "r",
    }
    return RefusedAttempt(**values | fields)


@pytest.fixture
def own_database(
    new_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    with new_database() as url:
        yield url


async def test_rows_are_read_as_they_were_written(own_database: str) -> None:
    rows = [
        attempt(0),
        attempt(1, order_id="", order_amount=None, untold=(), book_id=None, business_id=""),
    ]
    async with opened(own_database) as database:
        await database.read("w", lambda it: insert_refusals(it, rows))
        await database.read("w", lambda it: insert_refusals(it, rows))  # as after a lost answer
        found, end = await database.transaction(
            "r", lambda it: select_refusals(it, RefusalFilter(), 10, None)
        )
    assert (found, end) == (rows, None)


async def test_those_of_who_was_erased_meanwhile_are_not_written(own_database: str) -> None:
    pseudonyms = Pseudonyms([b"secret"])
    users = ["ann", "bob", "carl", "dan"]  # nobody, under way, erased just now and before that

    async def written(first: int) -> list[str]:
        rows = [
            attempt(first + it, refuse_time=NOW + timedelta(microseconds=first), user_id=user)
            for it, user in enumerate(users)
        ]
        await database.read("w", lambda it: insert_refusals(it, rows, pseudonyms))
        wanted = RefusalFilter(start_time=rows[0].refuse_time)
        found, _ = await database.transaction("r", lambda it: select_refusals(it, wanted, 10, None))
        return sorted(it.user_id for it in found)

    erased = "INSERT INTO coupon_erased_users (pseudonym, state, begin_time, erase_time)"
    async with opened(own_database) as database:
        assert await written(0) == users
        for user, state, time in (
            ("bob", 1, None),
            ("carl", 3, NOW - timedelta(seconds=4)),
            ("dan", 3, NOW - timedelta(seconds=6)),
        ):
            row = [pseudonyms.of_user(user), state, NOW, time]
            await database.read(
                "e", lambda it, row=row: it.execute(f"{erased} VALUES (%s, %s, %s, %s)", row)
            )
        assert await written(10) == ["ann", "dan"]
        await database.read(
            "e", lambda it: it.execute("DELETE FROM coupon_erased_users WHERE state = 1")
        )
        assert await written(20) == ["ann", "bob", "dan"]
        await database.read(
            "e",
            lambda it: it.execute(
                "UPDATE coupon_erased_users SET erase_time = %s", [NOW - timedelta(seconds=6)]
            ),
        )
        assert await written(30) == users


async def test_the_pages_of_a_book_go_past_what_is_of_others(own_database: str) -> None:
    mine = UUID(int=9)
    rows = [attempt(it, book_id=mine if it % 10 == 3 else UUID(int=7)) for it in range(50)]
    found: list[RefusedAttempt] = []
    async with opened(own_database) as database:
        await database.read("w", lambda it: insert_refusals(it, rows))
        wanted, after = RefusalFilter(book_id=mine, business_id="shop"), None
        for _ in range(20):
            page, after = await database.transaction(
                "r", lambda it, after=after: select_refusals(it, wanted, 2, after, 7)
            )
            found += page
            if after is None:
                break
    assert after is None
    assert found == [it for it in rows if it.book_id == mine]


async def test_all_businesses_are_listed_together(own_database: str) -> None:
    rows = [attempt(it, business_id=["", "a", "b"][it % 3]) for it in range(30)]
    found: list[RefusedAttempt] = []
    async with opened(own_database) as database:
        await database.read("w", lambda it: insert_refusals(it, rows))
        after = None
        while True:
            page, after = await database.transaction(
                "r", lambda it, after=after: select_refusals(it, RefusalFilter(), 7, after)
            )
            found += page
            if after is None:
                break
    assert found == rows


async def test_what_is_old_is_deleted_and_the_rest_stays(own_database: str) -> None:
    kept = timedelta(days=30)
    old = [attempt(60 * 24 * 31 + it, business_id=["", "a", "b"][it % 3]) for it in range(2_500)]
    young = [attempt(it, business_id=["", "a", "b"][it % 3]) for it in range(30)]
    async with opened(own_database) as database:
        await database.read("w", lambda it: insert_refusals(it, [*young, *old]))
        assert await RefusalPruner(database, lambda: NOW, kept).prune() == len(old)
        assert await RefusalPruner(database, lambda: NOW, kept).prune() == 0
        found, _ = await database.transaction(
            "r", lambda it: select_refusals(it, RefusalFilter(), 100, None)
        )
        assert found == young
        assert await RefusalPruner(database, lambda: NOW, timedelta()).prune() == len(young) - 1
