"""What has to catch the mutants: small, and failing with an AssertionError."""

# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
import functools
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import uuid4

import grpc
import psycopg
import redis
from google.protobuf.timestamp_pb2 import Timestamp
from model.clock import Clock, clocked_server, identity
from model.programs import Programs
from mutants.meeting import WAITING_FOR_A_LOCK
from support.calls import ALL_OR_NOTHING, batch, extend, item, locking_code, outcomes_of, tried
from support.hanging_commits import hanging_commits
from support.idle import settle
from support.invariants import assert_adds_up
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    audit,
    books,
    codes,
    euros,
    new_codes,
    reason_of,
    unique,
)
from support.waiting import until
from support.work_done import work_done

from coupon_service.checkout import Checkout
from coupon_service.store.bulk.lane import BULK_LOCK

CALLERS = 24
PAIR = 2
"""One caller for each server: each is a batch of its own. A batch of more is carried out one by one
when it fails, which hides what a bug did."""
ROUNDS = 8
PROGRAMS = 150
STEPS = 40
PATIENCE_S = 10
REDEEMED = audit.AUDIT_EVENT_TYPE_REDEEMED
UNLIMITED = books.BookLimits(max_redemptions_per_code=0)


@dataclass(frozen=True)
class Stack:
    """Two servers on the same data, and a clock for them and their Redis."""

    database_url: str
    redis_url: str
    clock: Clock
    servers: tuple[ServerThread, ServerThread]
    apis: tuple[Api, Api]

    def conserved(self) -> None:
        """Rows, counters and ledger agree."""
        with psycopg.connect(self.database_url) as connection:
            assert_adds_up(connection)

    def all_at_once(self, call: Callable[[Api, int], object], count: int = CALLERS) -> list[str]:
        """The reason, or OK, of so many calls at the same time, by turns on both servers."""
        calls = [functools.partial(call, self.apis[n % 2], n) for n in range(count)]
        results = all_at_once(calls)
        return sorted(reason_of(it) if isinstance(it, grpc.RpcError) else "OK" for it in results)


@contextmanager
def stack(database_url: str, redis_url: str, clock: Clock) -> Generator[Stack]:
    """Two servers; the clock of the second is what `clock` says as well."""
    # Longer than anything takes on a machine that others use as well.
    patience = {"lock_timeout_ms": 2_500, "default_deadline_ms": 60_000}
    options = {"locks_per_user_max": 2, **patience}
    with (
        clocked_server(database_url, redis_url, clock, **options) as first,
        clocked_server(database_url, redis_url, clock, **options) as second,
        closing(Api(first.address)) as one,
        closing(Api(second.address)) as other,
    ):
        yield Stack(database_url, redis_url, clock, (first, second), (one, other))


def model_test(it: Stack) -> None:
    """Random programs do what the plain model does."""
    with psycopg.connect(it.database_url, autocommit=True) as database:
        members = {
            "server": it.servers[0],
            "api": it.apis[0],
            "clock": it.clock,
            "database": database,
        }
        kind: Any = type("Programs", (Programs,), members)
        for number in range(PROGRAMS):
            seeds = random.Random(number)
            program: Any = kind()
            program.first_book(seeds.getrandbits(64))
            for _ in range(STEPS):
                program.one_step(seeds.getrandbits(64))
            program.teardown()


def race_for_an_order(it: Stack) -> None:
    """An order redeems a code once, however many try."""
    for _ in range(ROUNDS):
        code = it.apis[0].code(limits=UNLIMITED)
        found = it.all_at_once(
            lambda api, n, code=code: api.redeem(code, f"user-{n}", order_id="the order")
        )
        it.conserved()
        assert found == ["OK"] + ["ORDER_ALREADY_REDEEMED"] * (CALLERS - 1), found


def race_for_the_last_use(it: Stack) -> None:
    """Of two who come at the same time one redeems a code."""
    code = it.apis[0].code()
    found = it.all_at_once(lambda api, n: api.redeem(code, f"user-{n}"), PAIR)
    it.conserved()
    assert found == ["CODE_ALREADY_REDEEMED", "OK"], found


def race_with_one_request_id(it: Stack) -> None:
    """The same request from many callers has one effect."""
    for _ in range(ROUNDS):
        api = it.apis[0]
        code = api.code(limits=UNLIMITED)
        request = api.redeem_request(code, "user")
        found = it.all_at_once(lambda api, _, request=request: api.redemptions.RedeemCode(request))
        it.conserved()
        assert found == ["OK"] * CALLERS, found


def race_of_rollbacks(it: Stack) -> None:
    """A redemption is rolled back once."""
    for callers in (PAIR, *[CALLERS] * ROUNDS):
        code = it.apis[0].code()
        redemption_id = it.apis[0].redeem(code, "user").redemption.redemption_id
        found = it.all_at_once(lambda api, _, of=redemption_id: api.rollback(of), callers)
        it.conserved()
        assert found == ["ALREADY_ROLLED_BACK"] * (callers - 1) + ["OK"], found


def race_of_generations(it: Stack, number_of_books: int = 1) -> None:
    """However many make codes at once, half of the format stays free."""
    form = books.CodeFormat(length=5, alphabet="AB", prefix=uuid4().hex[:12].upper())
    shop = unique("business")
    made = [
        it.apis[0].draft(code_format=form, business_id=shop).book_id for _ in range(number_of_books)
    ]

    def generate(api: Api, n: int) -> object:
        request = codes.GenerateCodesRequest(
            book_id=made[n % number_of_books], count=9, request_id=unique("request")
        )
        return list(api.codes.GenerateCodes(request))

    found = it.all_at_once(generate)
    it.conserved()
    assert found == ["CODE_SPACE_EXHAUSTED"] * (CALLERS - 1) + ["OK"], found


def race_of_books_of_a_format(it: Stack) -> None:
    """However many books of a business have it."""
    race_of_generations(it, 3)


def generation_beside_another(it: Stack) -> None:
    """While a worker stores codes all others wait for their turn, and callers do not."""
    api = it.apis[0]
    code, book = api.code(), api.draft()
    request = codes.GenerateCodesRequest(book_id=book.book_id, count=2, request_id="r")
    with psycopg.connect(it.database_url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [BULK_LOCK])
        stored = api.codes.GenerateCodes(request, timeout=1)
        with suppress(grpc.RpcError):
            assert not list(stored), "it did not wait"
        api.redeem(code, "user")
    list(api.codes.GenerateCodes(request))
    it.conserved()


def race_of_batches(it: Stack) -> None:
    """Batches of the same codes in any order never wait for each other in a circle."""
    names = new_codes(30)
    it.apis[0].book(codes=names, limits=UNLIMITED)

    def redeem(api: Api, n: int) -> object:
        mixed = random.Random(n).sample(names, len(names))
        return batch(api, [item(code, f"user-{n}") for code in mixed], ALL_OR_NOTHING)

    for callers in (PAIR, *[CALLERS] * (ROUNDS // 2)):
        found = it.all_at_once(redeem, callers)
        assert found == ["OK"] * callers, found
        for server in it.servers:
            assert not list(_conflicts(server)), "transactions met"
    it.conserved()


def _conflicts(server: ServerThread) -> Iterator[object]:
    for metric in server.registry.collect():
        for sample in metric.samples:
            if sample.name == "coupon_transaction_conflicts_total" and sample.value:
                yield sample


def refused_for_contention(it: Stack) -> None:
    """A change that is refused leaves nothing behind."""
    settings = it.servers[0].settings.model_copy(update={"lock_timeout_ms": 300})
    with (
        ServerThread(settings) as server,
        closing(Api(server.address)) as api,
        psycopg.connect(it.database_url) as connection,
    ):
        code = api.code()
        connection.execute("LOCK TABLE coupon_book_counters IN EXCLUSIVE MODE")
        reason = tried(lambda: api.redeem(code, "user"))
        connection.rollback()
    assert reason == "CONTENTION", reason
    it.conserved()


def commit_that_hangs(it: Stack) -> None:
    """What is committed after its connection was abandoned was never called undone."""
    timeouts = {"statement_timeout_ms": 1_000, "tcp_user_timeout_ms": 1_000}
    settings = it.servers[0].settings.model_copy(update=timeouts)
    with (
        ServerThread(settings) as server,
        closing(Api(server.address)) as api,
        ThreadPoolExecutor() as pool,
    ):
        until(lambda: tried(api.draft) == "OK")
        code = api.code()
        with hanging_commits(it.database_url) as commits:
            answer = pool.submit(tried, lambda: api.redeem(code, "user"))
            commits.wait_for_one()
            assert answer.result() in ("DATABASE_UNAVAILABLE", "DEADLINE_EXCEEDED")
            commits.release()
        assert api.get_code(code).redemption_count == 1


def caller_who_stops_waiting(it: Stack) -> None:
    """A redemption goes on to its end without its caller: its lock is used up."""
    api, server = it.apis[0], it.servers[0]
    client: Any = redis.Redis.from_url(it.redis_url)
    with psycopg.connect(it.database_url, autocommit=True) as observer:
        for _ in range(ROUNDS // 2):
            code = locking_code(api)
            token = api.lock(code, "user").lock_token
            with psycopg.connect(it.database_url) as other:
                other.execute("SELECT FROM coupon_codes WHERE code = %s FOR UPDATE", [code])
                request = api.redeem_request(code, "user", lock_token=token)
                call = api.redemptions.RedeemCode.future(request)
                until(lambda: observer.execute(WAITING_FOR_A_LOCK).rowcount)
                call.cancel()
                until(lambda: not server.server._handler.open_calls)
            settle(server)
            # It may have waited too long for the row: then the lock is still good.
            left = 1 - api.get_code(code).redemption_count
            assert client.exists(f"coupon:{{{code}}}:places") == left


def repeat_after_the_lock(it: Stack) -> None:
    """A request that was answered with a lock is never answered with another."""
    api, user, request_id = it.apis[0], unique("user"), unique("request")
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL, limits=UNLIMITED)
    held = api.lock(code, user)
    api.lock(code, user, request_id=request_id)
    api.unlock(held.lock_token)
    assert tried(lambda: api.lock(code, user, request_id=request_id)) == "LOCK_EXPIRED"
    it.conserved()


def repeat_after_the_rollback(it: Stack) -> None:
    """Whoever repeats a redemption is told, by any server, that it was rolled back."""
    one, other = it.apis
    code, request_id = one.code(limits=UNLIMITED), unique("request")
    redeemed = one.redeem(code, "user", request_id=request_id).redemption
    other.rollback(redeemed.redemption_id)
    for api in it.apis:
        reason = tried(lambda api=api: api.redeem(code, "user", request_id=request_id))
        assert reason == "ALREADY_ROLLED_BACK", reason
    it.conserved()


def repeat_of_a_batch(it: Stack) -> None:
    """Each item of a batch that was carried out answers for itself."""
    api, names, request_id = it.apis[0], new_codes(3), unique("request")
    api.book(codes=names)
    items = [item(code, "user") for code in names]
    done = batch(api, items, ALL_OR_NOTHING, request_id)
    api.rollback(done.results[1].redemption.redemption_id)
    found = outcomes_of(batch(api, items, ALL_OR_NOTHING, request_id))
    assert found == ["REPLAYED", "ALREADY_ROLLED_BACK", "REPLAYED"], found
    it.conserved()


def refused_batches_beside_others(it: Stack) -> None:
    """What refuses a batch as a whole leaves nothing of it, whatever it is carried out with."""
    for _ in range(ROUNDS):
        api, names = it.apis[0], new_codes(2 * CALLERS)
        api.book(codes=names)

        def redeem_two(api: Api, n: int, names: Sequence[str] = names) -> object:
            last = names[2 * n + 1] if n // 2 % 2 else "UNKNOWN"  # on both servers
            return batch(api, [item(names[2 * n], "user"), item(last, "user")], ALL_OR_NOTHING)

        it.all_at_once(redeem_two)
        it.conserved()
        found = [api.get_code(name).redemption_count for name in names]
        assert found == [n // 4 % 2 for n in range(2 * CALLERS)], found


def repeat_after_another_assignment(it: Stack) -> None:
    """An assignment that was revoked is not there again when the code is assigned anew."""
    api, request_id = it.apis[0], unique("request")
    code = api.code()
    api.assign(code, "user", request_id=request_id)
    api.revoke(code, "user")
    api.assign(code, "user")
    reason = tried(lambda: api.assign(code, "user", request_id=request_id))
    assert reason == "ASSIGNMENT_NOT_ACTIVE", reason
    it.conserved()


def late_holder_after_a_flush(it: Stack) -> None:
    """A redemption with a lock that is older than the newest accepted one is refused."""
    api, user = it.apis[0], unique("user")
    code = api.code(lock_policy=books.LOCK_POLICY_REQUIRED, limits=UNLIMITED)
    older = api.lock(code, user)
    it.clock.begin()
    newer = api.lock(code, user)
    api.redeem(code, user, lock_token=newer.lock_token)
    it.clock.begin()
    assert tried(lambda: api.redeem(code, user, lock_token=older.lock_token)) == "LOCK_EXPIRED"


def late_holder_by_a_slow_clock(it: Stack) -> None:
    """Whether a lock is over is for the clock of Redis to say, not for that of a server."""
    slow = it.clock.now() + timedelta(seconds=1)
    with (
        ServerThread(it.servers[0].settings, lambda: slow) as server,
        closing(Api(server.address)) as api,
    ):
        code = api.code(lock_policy=books.LOCK_POLICY_REQUIRED)
        held = api.lock(code, "late", ttl_s=60)
        it.clock.advance(3_600_000)
        assert tried(lambda: api.redeem(code, "late", lock_token=held.lock_token)) == "LOCK_EXPIRED"


def lock_followed_by_another(it: Stack) -> None:
    """Whoever locks a code anew gets in at once, and a redemption in flight with the lock before is
    refused: also by a server whose clock is slow."""
    admitted, go_on = threading.Event(), threading.Event()
    admit = Checkout._admit

    async def held_up(self: Checkout, *arguments: Any) -> Any:
        command = await admit(self, *arguments)
        admitted.set()
        while not go_on.is_set():
            await asyncio.sleep(0.002)
        return command

    slow, api = it.clock.now(), it.apis[0]
    with (
        ServerThread(it.servers[0].settings, lambda: slow) as server,
        closing(Api(server.address)) as late,
        ThreadPoolExecutor(1) as pool,
    ):
        code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
        held = api.lock(code, "user", ttl_s=60)
        with mock.patch.object(Checkout, "_admit", held_up):
            late_call = pool.submit(
                tried, lambda: late.redeem(code, "user", lock_token=held.lock_token)
            )
            assert admitted.wait(PATIENCE_S)
        try:
            it.clock.advance(60_001)
            newer = api.lock(code, "user")
            assert newer.lock.lock_id != held.lock.lock_id
        finally:
            go_on.set()
        assert late_call.result() == "LOCK_EXPIRED"
        assert tried(lambda: api.redeem(code, "user", lock_token=newer.lock_token)) == "OK"


def lock_taken_before_the_end(it: Stack) -> None:
    """A lock that was taken in time is honoured, and gets no more time."""
    api = it.apis[0]
    end = Timestamp()
    end.FromMilliseconds(it.clock.now_ms + 60_000)
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL, end_time=end)
    held = api.lock(code, "user", ttl_s=600)
    it.clock.advance(60_001)
    assert tried(lambda: api.redeem(code, "user")) == "BOOK_EXPIRED"
    assert tried(lambda: extend(api, held.lock_token)) == "BOOK_EXPIRED"
    assert tried(lambda: api.redeem(code, "user", lock_token=held.lock_token)) == "OK"


def lock_when_locking_is_switched_off(it: Stack) -> None:
    """Locks that were granted before locking was switched off still keep others out."""
    api = it.apis[0]
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    held = api.lock(code, "user")
    it.apis[1].update(held.lock.book_id, lock_policy=books.LOCK_POLICY_OFF)
    assert tried(lambda: api.redeem(code, "another")) == "CODE_LOCKED"
    api.redeem(code, "user", lock_token=held.lock_token)


def code_that_an_end_user_cannot_use(it: Stack) -> None:
    """For a code that is hidden from an end user as much is done as for one that is not there, and
    nothing that has to reach the disk."""
    api, metadata = it.apis[0], identity("user", "")
    limits = books.BookLimits(max_redemptions_per_code=1, max_redemptions_per_user=1)
    codes = [api.code(assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED, limits=limits)]
    codes += new_codes(1)
    requests = [api.redeem_request(code, "user") for code in codes]
    with work_done(it.servers[0]) as work:
        done = [
            work.of(functools.partial(api.redemptions.RedeemCode, request, metadata=metadata))
            for request in requests
        ]
    assert done[0] == done[1], done
    assert "COMMIT" not in done[0][1], done


def discounts_beyond_an_amount(it: Stack) -> None:
    """A book may give more than any amount can be, and goes on."""
    api = it.apis[0]
    code = api.code(limits=UNLIMITED)
    book_id = api.redeem(code, "user", order_amount=euros(1_000)).redemption.book_id
    with psycopg.connect(it.database_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE coupon_book_counters SET discount_minor = %s"
            " WHERE book_id = %s AND redemptions > 0",
            (2**63 - 1, book_id),
        )
    api.redeem(code, "user", order_amount=euros(1_000))
    assert api.stats(book_id).discount_given.amount_minor == 2**63 - 1


def repeated_unlock(it: Stack) -> None:
    """Unlocking a lock once more does nothing to the next one."""
    api = it.apis[0]
    code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
    first = api.lock(code, "user")
    api.unlock(first.lock_token)
    api.lock(code, "user")
    api.unlock(first.lock_token)
    assert tried(lambda: api.lock(code, "another")) == "CODE_LOCKED"
