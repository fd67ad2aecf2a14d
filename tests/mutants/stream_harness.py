"""What has to catch the mutants of Checkout streams: small, and failing with an AssertionError."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress

import psycopg
from mutants.harness import Stack
from mutants.meeting import WAITING_FOR_A_LOCK
from mutants.rpc_harness import server
from support.calls import tried
from support.service import Api, ServerThread, books, new_codes, redemptions
from support.streamed import Stream
from support.token_clients import ISSUER
from support.token_issuers import ASKED_FOR
from support.waiting import PATIENCE, until

IN_TIME_S = 1.0
PATIENT = {"lock_timeout_ms": 10_000, "statement_timeout_ms": 20_000, "default_deadline_ms": 60_000}
UNLIMITED = books.BookLimits(max_redemptions_per_code=0)


def redeemed(api: Api, stream: Stream, code: str) -> str:
    """How a redemption over the stream ends."""
    return tried(lambda: stream.begin("RedeemCode", api.redeem_request(code, "user")).result(30))


@contextmanager
def held(it: Stack, code: str) -> Generator[None]:
    """Somebody else has the row of the code."""
    with psycopg.connect(it.database_url) as connection:
        connection.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])
        yield


def operations_in_flight(running: ServerThread) -> int:
    """How many the server has begun and not answered."""
    return running.server._handler.open_calls


def in_time(holds: Callable[[], object]) -> None:
    """Waits for what only a bug does, IN_TIME_S at most."""
    with suppress(AssertionError):
        until(holds, IN_TIME_S / PATIENCE)


def roles_over_a_stream(it: Stack) -> None:
    """An operation needs the roles of its method."""
    with server(it, **ASKED_FOR) as running:
        token = ISSUER.token(sub="user", roles=["self"])
        with closing(Api(running.address, token)) as api:
            stream = Stream(api.redemptions.Checkout)
            undo = redemptions.RollbackRedemptionRequest(redemption_id="none")
            reason = tried(lambda: stream.begin("RollbackRedemption", undo).result(30))
            stream.close()
    assert reason == "PERMISSION_DENIED", reason


def limits_over_a_stream(it: Stack) -> None:
    """Operations count as calls, and unknown codes as guesses."""
    with server(it, rate_limit_peers="4/hour") as running, closing(Api(running.address)) as api:
        stream = Stream(api.redemptions.Checkout)
        reasons = [redeemed(api, stream, code) for code in new_codes(4)]
        stream.close()
    assert reasons == ["CODE_NOT_FOUND"] * 3 + ["RATE_LIMITED"], reasons
    with server(it, guess_limit_peers="2/hour") as running, closing(Api(running.address)) as api:
        stream = Stream(api.redemptions.Checkout)
        reasons = [redeemed(api, stream, code) for code in new_codes(3)]
        stream.close()
    assert reasons == ["CODE_NOT_FOUND"] * 2 + ["RATE_LIMITED"], reasons


def stream_that_is_cut(it: Stack) -> None:
    """What a stream has read is carried out."""
    with (
        # The first fills the only batch, and the others wait for their turn.
        server(it, batches_in_flight=1, **PATIENT) as running,
        closing(Api(running.address)) as api,
        psycopg.connect(it.database_url, autocommit=True) as observer,
    ):
        code = api.code(limits=UNLIMITED)
        with held(it, code):
            stream = Stream(api.redemptions.Checkout)
            stream.begin("RedeemCode", api.redeem_request(code, "user"))
            until(lambda: observer.execute(WAITING_FOR_A_LOCK).rowcount)
            for _ in range(2):
                stream.begin("RedeemCode", api.redeem_request(code, "user"))
            until(lambda: operations_in_flight(running) == 3)
            stream.call.cancel()
            until(lambda: not running.server._streams.open)
        until(lambda: operations_in_flight(running) == 0)
        assert api.get_code(code).redemption_count == 3
    it.conserved()


def stream_that_is_full(it: Stack) -> None:
    """A stream with enough in flight is read no more."""
    with server(it, stream_operations_max=4) as running, closing(Api(running.address)) as api:
        code = api.code(limits=UNLIMITED)
        stream = Stream(api.redemptions.Checkout)
        with held(it, code):
            answers = [
                stream.begin("RedeemCode", api.redeem_request(code, "user")) for _ in range(12)
            ]
            until(lambda: operations_in_flight(running) >= 4)
            in_time(lambda: operations_in_flight(running) > 4)
            count = operations_in_flight(running)
        for answer in answers:
            answer.result(30)
        stream.close()
    assert count == 4, count


def stream_that_the_service_ends(it: Stack) -> None:
    """What a stream has read is answered before it ends."""
    with server(it) as running, closing(Api(running.address)) as api:
        code = api.code(limits=UNLIMITED)
        stream = Stream(api.redemptions.Checkout)
        with held(it, code):
            answer = stream.begin("RedeemCode", api.redeem_request(code, "user"))
            until(lambda: operations_in_flight(running) == 1)
            streams = running.server._streams
            running._loop.call_soon_threadsafe(streams.end, 0.0)
            in_time(lambda: stream.ended)
        outcome = tried(lambda: answer.result(30))
        until(lambda: stream.ended)
    assert outcome == "OK", outcome
