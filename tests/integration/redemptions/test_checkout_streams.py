"""Checkout streams on the real PostgreSQL and Redis: what holds for calls holds for operations.

Every reason over streams is in test_reasons.py, and the bounds of streams are in
tests/unit/rpc/test_checkout_streams.py. `COUPON_TEST_STREAMED=1` makes any test of this folder use
streams for its calls.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import grpc
import pytest
from support.calls import tried
from support.service import (
    Api,
    Refused,
    ServerThread,
    books,
    new_codes,
    reason_of,
    redemptions,
    refused,
    settings_for,
    unique,
    with_token,
)
from support.streamed import OperationError, Stream
from support.token_clients import ISSUER
from support.waiting import until

from coupon_service.security.bearer_tokens import LEEWAY_S
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

NewDatabase = Callable[[], AbstractContextManager[str]]
STREAMS_ENDED = {
    "method": "RedemptionService/Checkout",
    "status": "UNAVAILABLE",
    "reason": "STREAM_ENDED",
    "transport": "call",
}
MANY = books.BookLimits(max_redemptions_per_code=1_000_000)


@contextmanager
def stream_of(address: str, token: str | None = None, **call: Any) -> Generator[Stream]:
    """A stream on a connection of its own."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        made: Any = channel if token is None else with_token(channel, token)
        stream = Stream(RedemptionServiceStub(made).Checkout, **call)
        yield stream
        stream.close()


def outcome(answer: Future[Any]) -> str:
    """OK, REPLAYED, or the reason of the error."""
    try:
        response = answer.result(30)
    except grpc.RpcError as error:
        return reason_of(error)
    return "REPLAYED" if getattr(response, "replayed", False) else "OK"


def redeem(api: Api, code: str, user_id: str = "ann", **fields: Any) -> tuple[str, Any]:
    """Method and request of a redemption."""
    return "RedeemCode", api.redeem_request(code, user_id, **fields)


# --- exactly once -------------------------------------------------------------------------------


def test_a_hundred_streams_that_race_for_a_code_get_its_uses_and_no_more(
    api: Api, server_address: str
) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=37))
    channels = [
        grpc.insecure_channel(server_address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(5)
    ]
    streams = [Stream(RedemptionServiceStub(it).Checkout) for it in channels * 20]
    answers = [
        stream.begin(*redeem(api, code, f"user-{number}"))
        for _ in range(3)
        for number, stream in enumerate(streams)
    ]
    outcomes = Counter(map(outcome, answers))
    for stream in streams:
        stream.close()
    for channel in channels:
        channel.close()
    assert outcomes == {"OK": 37, "CODE_LIMIT_EXCEEDED": 263}
    assert api.get_code(code).redemption_count == 37


def test_a_request_id_that_comes_over_many_streams_and_a_call_has_one_effect(
    api: Api, server_address: str
) -> None:
    code = api.code(limits=MANY)
    method, request = redeem(api, code)
    with stream_of(server_address) as one, stream_of(server_address) as other:
        answers = [stream.begin(method, request) for stream in (one, other) * 10]
        outcomes = Counter(map(outcome, answers))
        assert outcomes == {"OK": 1, "REPLAYED": 19}
    assert api.redemptions.RedeemCode(request).replayed
    assert api.get_code(code).redemption_count == 1
    ids = {answer.result().redemption.redemption_id for answer in answers}
    assert len(ids) == 1


def test_a_repeat_settles_what_a_cut_stream_left_open(api: Api, server_address: str) -> None:
    names = new_codes(40)
    book = api.book(codes=names)
    requests = [redeem(api, code) for code in names]
    for cut_after in (0, 1, 3):
        with stream_of(server_address) as stream:
            answers = [stream.begin(*it) for it in requests]
            until(lambda n=cut_after, a=answers: sum(it.done() for it in a) >= n)
            stream.call.cancel()
            assert {outcome_of_cut(it) for it in answers} <= {"OK", "CANCELLED"}
    with stream_of(server_address) as stream:
        assert {outcome(stream.begin(*it)) for it in requests} <= {"OK", "REPLAYED"}
    assert api.stats(book.book_id).redemption_count == len(names)


def outcome_of_cut(answer: Future[Any]) -> str:
    """OK, or the status of gRPC for an operation without a result."""
    error: Any = answer.exception(30)
    return "OK" if error is None else error.code().name


# --- callers ------------------------------------------------------------------------------------


def test_a_token_that_expires_ends_operations_and_not_the_stream(guarded: ServerThread) -> None:
    with closing(Api(guarded.address, ISSUER.token(roles=["admin"]))) as admin:
        code = admin.code(business_id="acme", limits=MANY)
        expiring = ISSUER.token(roles=["redeemer"], exp=int(time.time()) - LEEWAY_S + 3)
        with stream_of(guarded.address, expiring) as stream:
            assert outcome(stream.begin(*redeem(admin, code))) == "OK"
            until(lambda: outcome(stream.begin(*redeem(admin, code))) == "UNAUTHENTICATED")
            assert not stream.ended


def test_the_roles_of_a_stream_are_those_of_each_operation(guarded: ServerThread) -> None:
    with closing(Api(guarded.address, ISSUER.token(roles=["admin"]))) as admin:
        code = admin.code(business_id="acme", limits=MANY)
        done = admin.redeem(code, "ann").redemption.redemption_id
        with stream_of(guarded.address, ISSUER.token(sub="ann", roles=["self"])) as stream:
            assert outcome(stream.begin(*redeem(admin, code))) == "OK"
            assert outcome(stream.begin(*redeem(admin, code, "bob"))) == "PERMISSION_DENIED"
            undo = redemptions.RollbackRedemptionRequest(redemption_id=done)
            assert outcome(stream.begin("RollbackRedemption", undo)) == "PERMISSION_DENIED"
        other = ISSUER.token(roles=["redeemer"], business_id="another")
        with stream_of(guarded.address, other) as stream:
            assert outcome(stream.begin(*redeem(admin, code))) == "CODE_NOT_FOUND"


@pytest.fixture
def limited(new_database: NewDatabase, redis_url: str) -> Iterator[ServerThread]:
    limits = {
        "rate_limit_peers": "5/hour",
        "guess_limit_peers": "3/hour",
        "guess_limit_end_users": "none",
    }
    with new_database() as database_url:
        settings = settings_for(database_url, redis_url, **limits)
        with ServerThread(settings) as running:
            yield running


def test_operations_count_against_the_rate_limit_with_calls(limited: ServerThread) -> None:
    lock = redemptions.UnlockCodeRequest()
    with closing(Api(limited.address, streamed=0)) as api, stream_of(limited.address) as stream:
        with refused("INVALID_ARGUMENT"):
            api.redemptions.UnlockCode(lock)
        answers = [stream.begin("UnlockCode", lock) for _ in range(5)]
        outcomes = Counter(map(outcome, answers))
        # The call and the stream itself count as well.
        assert outcomes == {"INVALID_ARGUMENT": 3, "RATE_LIMITED": 2}
        error: Any = answers[-1].exception()
        told = Refused()
        told.error = error
        assert isinstance(error, OperationError)
        assert told.retry_after_s is not None
        with refused("RATE_LIMITED"):
            api.redemptions.UnlockCode(lock)


def test_unknown_codes_over_a_stream_are_guesses(new_database: NewDatabase, redis_url: str) -> None:
    limits = {"guess_limit_peers": "3/hour"}
    with new_database() as database_url:
        with ServerThread(settings_for(database_url, redis_url, **limits)) as running:
            with closing(Api(running.address)) as api, stream_of(running.address) as stream:
                code = api.code(limits=MANY)
                unknown = [
                    outcome(stream.begin(*redeem(api, name, unique("user"))))
                    for name in new_codes(5)
                ]
                assert unknown == ["CODE_NOT_FOUND"] * 3 + ["RATE_LIMITED"] * 2
                assert outcome(stream.begin(*redeem(api, code, unique("user")))) == "RATE_LIMITED"
                with refused("RATE_LIMITED"):
                    api.validate(code, unique("user"))


# --- ends ---------------------------------------------------------------------------------------


def test_a_worker_that_stops_answers_what_it_has_read_and_carries_out_nothing_else(
    new_database: NewDatabase, redis_url: str
) -> None:
    with new_database() as database_url:
        settings = settings_for(database_url, redis_url, stream_operations_max=8)
        running = ServerThread(settings).__enter__()
        with closing(Api(running.address)) as api:
            code = api.code(limits=MANY)
            with stream_of(running.address) as stream:
                answers: list[tuple[Any, Future[Any]]] = []
                stopping = threading.Event()

                def shop() -> None:
                    while not stream.ended:
                        method, request = redeem(api, code, request_id=unique("request"))
                        answers.append((request, stream.begin(method, request)))
                        if len(answers) > 200:
                            stopping.set()
                        time.sleep(0.001)

                shopping = threading.Thread(target=shop)
                shopping.start()
                assert stopping.wait(60)
                running.__exit__()
                shopping.join(60)
            outcomes = Counter(outcome(answer) for _, answer in answers)
        assert set(outcomes) == {"OK", "STREAM_ENDED"}
        with ServerThread(settings) as running, closing(Api(running.address)) as api:
            assert api.get_code(code).redemption_count == outcomes["OK"]
            with stream_of(running.address) as stream:
                again = [
                    (outcome(answer), outcome(stream.begin("RedeemCode", request)))
                    for request, answer in answers
                ]
            assert set(again) == {("OK", "REPLAYED"), ("STREAM_ENDED", "OK")}
            assert api.get_code(code).redemption_count == len(answers)


def test_a_stream_ends_before_its_connection_is_too_old(
    new_database: NewDatabase, redis_url: str
) -> None:
    with new_database() as database_url:
        settings = settings_for(
            database_url, redis_url, connection_age_ms=1_500, connection_age_grace_ms=60_000
        )
        with ServerThread(settings) as running, closing(Api(running.address, streamed=1)) as api:
            code = api.code(limits=MANY)
            outcomes = Counter[str]()
            ends_s = time.monotonic() + 4
            while time.monotonic() < ends_s:
                outcomes[tried(lambda: api.redeem(code, "ann"))] += 1
                time.sleep(0.01)
            ended = running.registry.get_sample_value("coupon_rpcs_total", STREAMS_ENDED)
            assert ended is not None
            assert ended >= 2
            assert set(outcomes) <= {"OK", "STREAM_ENDED"}
            assert api.get_code(code).redemption_count == outcomes["OK"]
