"""Every reason of the contract can be had, with the status, details and metadata it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from pydantic import SecretStr
from support.calls import (
    ALL_OR_NOTHING,
    batch,
    extend,
    get_lock,
    item,
    pause,
    reason_name,
    redemption,
)
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    codes,
    euros,
    from_now,
    money,
    new_codes,
    redemptions,
    refused,
    unique,
)
from support.shards import make_shards
from support.time_zones import zone_at_noon
from support.waiting import until

from coupon_service.store import finishing
from coupon_service.v1.error_reason_pb2 import ErrorReason

CONTRACT = Path(__file__).parents[3] / "proto/coupon_service/v1/error_reason.proto"
NOWHERE = "127.0.0.1:1"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
OPTIONAL = books.LOCK_POLICY_OPTIONAL
COMBINABLE = books.ORDER_POLICY_COMBINABLE

WITH_AUTHENTICATION = {
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RATE_LIMITED",
    "UPLOAD_AMBIGUOUS",
}
"""Everybody may do everything as often as they like, and is the same caller, until there is
authentication. The statuses of these reasons are tested with the table of all of them:
tests/unit/rpc/test_status.py."""

IN_ROWS = {"DUPLICATE_CODE", "CODE_HAS_HISTORY"}
"""Never an error of a call."""

OF_STREAMS = {"STREAM_ENDED", "RESUME_TOKEN_AHEAD"}
"""Only of a stream: test_checkout_streams.py, audit/test_watching.py."""


@dataclass(frozen=True)
class Promise:
    """What the comment of a reason says."""

    status: StatusCode
    metadata: frozenset[str]
    retry: bool


def promises() -> dict[str, Promise]:
    """What the contract says of each reason."""
    pattern = r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = [1-9]"
    found: dict[str, Promise] = {}
    for comment, reason in re.findall(pattern, CONTRACT.read_text("utf-8")):
        text = re.sub(r"\s*//\s*", " ", comment)
        status = re.search(r"\[(\w+)\]", text)
        assert status is not None, reason
        _, _, metadata = text.partition("Metadata:")
        keys = frozenset(re.findall(r"`(\w+)`", metadata))
        found[reason] = Promise(StatusCode[status[1]], keys, "RetryInfo" in text)
    return found


# --- how to get each of them --------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """The shared server, and others on its data where it needs a special one."""

    api: Api
    tomorrow: Api
    main: ServerThread
    stack: ExitStack
    streamed: int
    new_database: Callable[[], AbstractContextManager[str]]

    def server(self, **settings: object) -> Api:
        """A client of another server, with other settings."""
        changed = self.main.settings.model_copy(update=settings)
        running = self.stack.enter_context(ServerThread(changed))
        client = Api(running.address, streamed=self.streamed)
        self.stack.callback(client.close)
        return client

    def hold(self, code: str) -> None:
        """Somebody else has the row of the code, as in a transaction that hangs."""
        connection = self.stack.enter_context(psycopg.connect(self.main.database_url))
        connection.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])


@pytest.fixture(params=[0, 1], ids=["call", "stream"])
def stage(
    request: pytest.FixtureRequest,
    tomorrow: Api,
    server: ServerThread,
    new_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[Stage]:
    with ExitStack() as stack:
        api = stack.enter_context(closing(Api(server.address, streamed=request.param)))
        yield Stage(api, tomorrow, server, stack, request.param, new_database)


def book_not_found(stage: Stage) -> object:
    return stage.api.stats(UNKNOWN_ID)


def code_not_found(stage: Stage) -> object:
    return stage.api.get_code(*new_codes(1))


def assignment_not_found(stage: Stage) -> object:
    return stage.api.revoke(stage.api.code(), "ann")


def lock_not_found(stage: Stage) -> object:
    return get_lock(stage.api, UNKNOWN_ID)


def redemption_not_found(stage: Stage) -> object:
    return redemption(stage.api, UNKNOWN_ID)


def book_not_active(stage: Stage) -> object:
    code = stage.api.code()
    pause(stage.api, stage.api.get_code(code).book_id)
    return stage.api.redeem(code, "ann")


def book_not_started(stage: Stage) -> object:
    return stage.api.redeem(stage.api.code(start_time=from_now(days=1)), "ann")


def book_expired(stage: Stage) -> object:
    return stage.api.redeem(stage.api.code(end_time=from_now(days=-1)), "ann")


def code_disabled(stage: Stage) -> object:
    code = stage.api.code()
    stage.api.disable(code)
    return stage.api.redeem(code, "ann")


def code_expired(stage: Stage) -> object:
    code = stage.api.code(assigned_code_validity=Duration(seconds=3_600))
    stage.api.assign(code, "ann")
    return stage.tomorrow.redeem(code, "ann")


def code_not_started(stage: Stage) -> object:
    (code,) = new_codes(1)
    row = codes.NewCode(code=code)
    row.terms.start_time.FromDatetime(from_now(hours=1))
    stage.api.import_codes(stage.api.book().book_id, [row])
    return stage.api.redeem(code, "ann")


def upload_not_found(stage: Stage) -> object:
    request = codes.ChangeCodesRequest(
        book_id=stage.api.book().book_id,
        change=codes.CODE_CHANGE_DISABLE,
        request_id=unique("request"),
        filter=codes.CodeFilter(upload_request_id="nothing"),
    )
    return list(stage.api.codes.ChangeCodes(request))


def code_already_redeemed(stage: Stage) -> object:
    code = stage.api.code()
    stage.api.redeem(code, "ann")
    return stage.api.redeem(code, "ann")


def code_limit_exceeded(stage: Stage) -> object:
    code = stage.api.code(limits=books.BookLimits(max_redemptions_per_code=2))
    return [stage.api.redeem(code, "ann") for _ in range(3)]


def user_limit_exceeded(stage: Stage) -> object:
    names = new_codes(2)
    stage.api.book(codes=names, limits=books.BookLimits(max_redemptions_per_user=1))
    return [stage.api.redeem(code, "ann") for code in names]


def book_limit_exceeded(stage: Stage) -> object:
    names = new_codes(2)
    stage.api.book(codes=names, limits=books.BookLimits(max_redemptions=1))
    return [stage.api.redeem(code, "ann") for code in names]


def budget_exceeded(stage: Stage) -> object:
    code = stage.api.code(limits=books.BookLimits(max_discount_minor=1))
    return stage.api.redeem(code, "ann", order_amount=euros(1_000))


def order_amount_required(stage: Stage) -> object:
    return stage.api.redeem(stage.api.code(limits=books.BookLimits(max_discount_minor=1)), "ann")


def order_id_required(stage: Stage) -> object:
    return stage.api.redeem(stage.api.code(order_policy=COMBINABLE), "ann")


def order_fully_discounted(stage: Stage) -> object:
    all_of_it = books.Discount(percent_off=books.PercentOff(basis_points=10_000))
    return redeem_two(stage, order_policy=COMBINABLE, discount=all_of_it)


def order_limit_exceeded(stage: Stage) -> object:
    limits = books.BookLimits(max_redemptions_per_order=1)
    return redeem_two(stage, order_policy=COMBINABLE, limits=limits)


def coupons_not_combinable(stage: Stage) -> object:
    return redeem_two(stage, order_policy=books.ORDER_POLICY_EXCLUSIVE)


def exclusive_group_used(stage: Stage) -> object:
    return redeem_two(stage, order_policy=COMBINABLE, exclusive_group="shipping")


def redeem_two(stage: Stage, **rules: Any) -> object:
    """Two codes of a book for one order."""
    names = new_codes(2)
    stage.api.book(codes=names, **rules)
    of_order = {"order_id": "order 1", "order_amount": euros(1_000)}
    return [stage.api.redeem(code, "ann", **of_order) for code in names]


def no_codes_available(stage: Stage) -> object:
    return stage.api.assign_random(stage.api.book().book_id, "ann")


def code_not_assigned_to_user(stage: Stage) -> object:
    code = stage.api.code(assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED)
    return stage.api.redeem(code, "ann")


def code_locked(stage: Stage) -> object:
    code = stage.api.code(lock_policy=OPTIONAL)
    stage.api.lock(code, unique("holder"))
    return stage.api.redeem(code, "ann")


def lock_required(stage: Stage) -> object:
    return stage.api.redeem(stage.api.code(lock_policy=books.LOCK_POLICY_REQUIRED), "ann")


def lock_expired(stage: Stage) -> object:
    token = stage.api.lock(stage.api.code(lock_policy=OPTIONAL), unique("user")).lock_token
    stage.api.unlock(token)
    return extend(stage.api, token)


def lock_token_mismatch(stage: Stage) -> object:
    return extend(stage.api, "bm90IG9uZSBvZiBvdXJz")


def lock_limit_exceeded(stage: Stage) -> object:
    names, user = new_codes(6), unique("user")
    stage.api.book(codes=names, lock_policy=OPTIONAL)
    return [stage.api.lock(code, user) for code in names]


def order_below_minimum(stage: Stage) -> object:
    return stage.api.redeem(stage.api.code(min_order_amount_minor=100), "ann")


def currency_mismatch(stage: Stage) -> object:
    dollars = money.Money(amount_minor=1, currency_code="USD")
    return stage.api.redeem(stage.api.code(), "ann", order_amount=dollars)


def assignment_not_active(stage: Stage) -> object:
    code, request_id = stage.api.code(), unique("request")
    stage.api.assign(code, "ann", request_id=request_id)
    stage.api.revoke(code, "ann")
    return stage.api.assign(code, "ann", request_id=request_id)


def outside_schedule(stage: Stage) -> object:
    other = datetime.now(UTC) + timedelta(days=3)
    day = books.Weekday.ValueType(other.isoweekday())
    window = books.WeeklyWindow(days=[day], opens="00:00", closes="24:00")
    schedule = books.Schedule(time_zone="UTC", windows=[window])
    return stage.api.redeem(stage.api.code(schedule=schedule), "ann")


def _redeemed_twice(stage: Stage, **limits: int) -> object:
    period = books.PeriodLimits(period=books.PERIOD_MONTH, time_zone=zone_at_noon(), **limits)
    code = stage.api.code(period_limits=period, limits=books.BookLimits(max_redemptions_per_code=0))
    stage.api.redeem(code, "ann")
    return stage.api.redeem(code, "ann")


def user_period_limit_exceeded(stage: Stage) -> object:
    return _redeemed_twice(stage, max_redemptions_per_user=1)


def book_period_limit_exceeded(stage: Stage) -> object:
    return _redeemed_twice(stage, max_redemptions=1)


def already_rolled_back(stage: Stage) -> object:
    redeemed = stage.api.redeem(stage.api.code(), "ann").redemption
    return [stage.api.rollback(redeemed.redemption_id) for _ in range(2)]


ARCHIVED_EVENT = """
WITH made AS (
    INSERT INTO coupon_audit_archives (archive, book_id, state, file_name, create_time)
    SELECT coalesce(max(archive), 0) + 1, %s, 4, 'spring.archive', now() FROM coupon_audit_archives
    RETURNING archive
)
INSERT INTO coupon_archived_events (event_id, archive, type)
SELECT gen_random_uuid(), archive, 16 FROM made RETURNING event_id::text
"""


def archived(stage: Stage) -> object:
    book_id = stage.api.book().book_id
    with psycopg.connect(stage.main.database_url) as connection:
        ((event_id,),) = connection.execute(ARCHIVED_EVENT, [book_id]).fetchall()
    return redemption(stage.api, event_id)


def order_already_redeemed(stage: Stage) -> object:
    code = stage.api.code()
    return [stage.api.redeem(code, "ann", order_id="order 1") for _ in range(2)]


def code_space_exhausted(stage: Stage) -> object:
    small = books.CodeFormat(length=4, alphabet="AB")
    request = codes.GenerateCodesRequest(
        book_id=stage.api.book(code_format=small).book_id, count=9, request_id=unique("request")
    )
    return list(stage.api.codes.GenerateCodes(request))


def invalid_state_transition(stage: Stage) -> object:
    return pause(stage.api, stage.api.draft().book_id)


def code_already_assigned(stage: Stage) -> object:
    code = stage.api.code()
    return [stage.api.assign(code, user) for user in ("ann", "bob")]


def invalid_argument(stage: Stage) -> object:
    return stage.api.redeem("", "")


def code_checksum_invalid(stage: Stage) -> object:
    book = stage.api.book(code_format=books.CodeFormat(check_character=True))
    preview = codes.PreviewCodesRequest(book_id=book.book_id, count=1, sample_count=1)
    (sample,) = stage.api.codes.PreviewCodes(preview).sample_codes
    mistyped = ("3" if sample[0] == "2" else "2") + sample[1:]
    return stage.api.redeem(mistyped, "ann", book_id=book.book_id)


def request_id_reused(stage: Stage) -> object:
    code, request_id = stage.api.code(), unique("request")
    return [stage.api.redeem(code, user, request_id=request_id) for user in ("ann", "bob")]


def business_required(stage: Stage) -> object:
    database_url = stage.stack.enter_context(stage.new_database())
    list(finishing.finish(database_url))
    server = stage.server(database_url=SecretStr(database_url), default_business="")
    for business in ("ours", "theirs"):
        server.draft(business_id=business)
    return server.get_code(*new_codes(1))


def event_not_found(stage: Stage) -> object:
    return stage.api.audit.GetAuditProof(audit.GetAuditProofRequest(event_id=UNKNOWN_ID))


def seal_not_found(stage: Stage) -> object:
    return stage.api.audit.GetAuditCheckpoint(audit.GetAuditCheckpointRequest(number=2**60))


def event_not_sealed(stage: Stage) -> object:
    database_url = stage.stack.enter_context(stage.new_database())
    server = stage.server(database_url=SecretStr(database_url), seal_interval_ms=0)
    return _prove_first_event(server, server.draft().book_id)


def ledger_changed(stage: Stage) -> object:
    database_url = stage.stack.enter_context(stage.new_database())
    server = stage.server(database_url=SecretStr(database_url))
    book_id = server.draft().book_id
    verify = audit.VerifyAuditRequest()
    until(lambda: [*server.audit.VerifyAudit(verify)][-1].unsealed_row_count == 0)
    with psycopg.connect(database_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE redemption_audit SET request_id = 'another'")
    return _prove_first_event(server, book_id)


def _prove_first_event(server: Api, book_id: str) -> object:
    event_id = server.events(book_id=book_id)[0].event_id
    return server.audit.GetAuditProof(audit.GetAuditProofRequest(event_id=event_id))


def several_businesses(stage: Stage) -> object:
    database_url = stage.stack.enter_context(stage.new_database())
    make_shards(database_url, of=2)
    server = stage.server(database_url=SecretStr(database_url), shards=2, shard_urls=None)
    items = [item(code, "ann", business_id=code) for code in new_codes(2)]
    return batch(server, items, mode=ALL_OR_NOTHING)


def concurrent_modification(stage: Stage) -> object:
    book = stage.api.draft()
    request = books.ActivateCouponBookRequest(book_id=book.book_id, etag=book.etag)
    stage.api.update(book.book_id, name="New")
    return stage.api.books.ActivateCouponBook(request)


def contention(stage: Stage) -> object:
    (code,) = new_codes(1)
    book = stage.api.book(codes=[code])
    stage.hold(code)
    return stage.api.assign_random(book.book_id, "ann")


def overloaded(stage: Stage) -> object:
    busy = stage.server(queue_max_size=1, batches_in_flight=1)
    code = stage.api.code()
    stage.hold(code)
    redeem: Any = busy.redemptions.RedeemCode
    calls = [redeem.future(busy.redeem_request(code, "ann")) for _ in range(5)]
    until(lambda: any(call.done() for call in calls))
    return next(call for call in calls if call.done()).result()


def locks_unavailable(stage: Stage) -> object:
    without_redis = stage.server(redis_url=SecretStr(f"redis://{NOWHERE}/0"))
    return without_redis.lock(stage.api.code(lock_policy=OPTIONAL), "ann")


def database_unavailable(stage: Stage) -> object:
    without_database = stage.server(
        database_url=SecretStr(f"postgresql://nobody@{NOWHERE}/none"), pool_timeout_ms=100
    )
    (code,) = new_codes(1)
    return without_database.redeem(code, "ann")


def refusals_not_kept(stage: Stage) -> object:
    forgetful = stage.server(refusals_kept_days=0)
    return forgetful.redemptions.ListRefusals(redemptions.ListRefusalsRequest())


def deadline_exceeded(stage: Stage) -> object:
    impatient = stage.server(default_deadline_ms=100)
    code = stage.api.code()
    stage.hold(code)
    return impatient.redeem(code, "ann")


def internal(stage: Stage) -> object:
    # A rule that nobody knows of is a fault that nobody foresaw.
    url = stage.stack.enter_context(stage.new_database())
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE coupon_books ADD CHECK (book_id IS NULL)")
    return stage.server(database_url=SecretStr(url)).draft()


def erase(api: Api, user_id: str) -> None:
    list(api.audit.EraseUser(audit.EraseUserRequest(user_id=user_id)))


def user_erased(stage: Stage) -> object:
    code, user_id, request_id = stage.api.code(), unique("user"), unique("request")
    stage.api.redeem(code, user_id, request_id=request_id)
    erase(stage.api, user_id)
    return stage.api.redeem(code, user_id, request_id=request_id)


def erasure_in_progress(stage: Stage) -> object:
    code, user_id = stage.api.code(), unique("user")
    erase(stage.api, user_id)
    connection = stage.stack.enter_context(
        psycopg.connect(stage.main.database_url, autocommit=True)
    )
    request = audit.GetErasureRequest(user_id=user_id)
    name = stage.api.audit.GetErasure(request).erasure.pseudonym
    change = "UPDATE coupon_erased_users SET state = %s WHERE pseudonym = %s"
    stage.stack.callback(connection.execute, change, [3, name])
    connection.execute(change, [2, name])
    return stage.api.redeem(code, user_id)


def erasure_not_configured(stage: Stage) -> object:
    return erase(stage.server(erasure_secret=None), unique("user"))


def erasure_not_found(stage: Stage) -> object:
    return stage.api.audit.GetErasure(audit.GetErasureRequest(user_id=unique("user")))


PROVOKE: dict[str, Callable[[Stage], object]] = {
    function.__name__.upper(): function
    for function in (
        book_not_found,
        code_not_found,
        assignment_not_found,
        lock_not_found,
        redemption_not_found,
        event_not_found,
        seal_not_found,
        event_not_sealed,
        ledger_changed,
        book_not_active,
        book_not_started,
        book_expired,
        code_disabled,
        code_expired,
        code_not_started,
        upload_not_found,
        code_already_redeemed,
        code_limit_exceeded,
        user_limit_exceeded,
        book_limit_exceeded,
        budget_exceeded,
        order_amount_required,
        order_id_required,
        order_fully_discounted,
        order_limit_exceeded,
        coupons_not_combinable,
        exclusive_group_used,
        no_codes_available,
        code_not_assigned_to_user,
        code_locked,
        lock_required,
        lock_expired,
        lock_token_mismatch,
        lock_limit_exceeded,
        order_below_minimum,
        currency_mismatch,
        outside_schedule,
        user_period_limit_exceeded,
        book_period_limit_exceeded,
        already_rolled_back,
        assignment_not_active,
        order_already_redeemed,
        archived,
        code_space_exhausted,
        invalid_state_transition,
        code_already_assigned,
        invalid_argument,
        code_checksum_invalid,
        request_id_reused,
        business_required,
        several_businesses,
        concurrent_modification,
        contention,
        refusals_not_kept,
        overloaded,
        locks_unavailable,
        database_unavailable,
        deadline_exceeded,
        internal,
        user_erased,
        erasure_in_progress,
        erasure_not_configured,
        erasure_not_found,
    )
}


def test_there_is_a_way_to_every_reason() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name}
    assert promises().keys() == names - {"UNSPECIFIED"}
    assert PROVOKE.keys() | IN_ROWS | OF_STREAMS | WITH_AUTHENTICATION == promises().keys()


@pytest.mark.parametrize("reason", PROVOKE)
def test_a_reason_comes_as_the_contract_says(stage: Stage, reason: str) -> None:
    promise = promises()[reason]
    with refused(reason, promise.status) as it:
        PROVOKE[reason](stage)
    assert it.metadata.keys() >= promise.metadata
    assert all(it.metadata.values())
    assert bool(it.fields) is (reason == "INVALID_ARGUMENT")
    may_help = promise.retry or promise.status is StatusCode.UNAVAILABLE or reason == "CODE_LOCKED"
    assert (it.retry_after_s is not None) is may_help
    assert it.error.details()  # type: ignore[attr-defined]


def test_a_row_that_is_there_already_has_its_reason(api: Api) -> None:
    code = api.code()
    (answer,) = api.import_codes(api.book().book_id, [code])
    (row,) = answer.rejected_rows
    assert reason_name(row.error) == "DUPLICATE_CODE"
