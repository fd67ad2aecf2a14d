"""What no client may do: each is refused or bounded, others are served, and the memory is flat.

Against a worker process, since its memory is measured. The bounds of that are generous: they tell
what is kept for every call or message from what is not.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import grpc
import psutil
import pytest
from support import http2_frames as frames
from support.calls import tried
from support.service import (
    Api,
    all_at_once,
    assignments,
    audit,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    struct,
    unique,
)
from support.service_process import PATIENCE_S, environment_of, fetch, serving, workers_of
from support.waiting import until

CALLS_MAX = 3_000
CONNECTIONS_MAX = 100
MIB = 1 << 20

IMPORT = "/coupon_service.v1.CouponCodeService/ImportCodes"
REDEEM = "/coupon_service.v1.RedemptionService/RedeemCode"
GET_LOCK = "/coupon_service.v1.RedemptionService/GetLock"

NewDatabase = Callable[[], AbstractContextManager[str]]


@dataclass
class Service:
    """A service with one worker."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    @property
    def port(self) -> int:
        """Its gRPC port."""
        return int(self.environment["COUPON_PORT"])

    @property
    def worker(self) -> psutil.Process:
        """The worker."""
        (worker,) = workers_of(self.process)
        return worker

    @property
    def memory_bytes(self) -> int:
        """What the worker has in memory."""
        return self.worker.memory_info().rss

    def api(self) -> Api:
        """A client with a connection of its own."""
        return Api(f"127.0.0.1:{self.port}")


@pytest.fixture(scope="module")
def service(
    new_database: NewDatabase, redis_server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with new_database() as database_url:
        environment = {
            **environment_of(database_url, redis_server_url),
            "COUPON_WORKERS": "1",
            "COUPON_SHUTDOWN_TIMEOUT_MS": "100",
            "COUPON_REDIS_TIMEOUT_MS": "1000",
            "COUPON_CALLS_MAX": str(CALLS_MAX),
            "COUPON_CONNECTIONS_MAX": str(CONNECTIONS_MAX),
            "COUPON_STREAM_IDLE_MS": "1500",
        }
        with serving(environment, tmp_path_factory.mktemp("service")) as process:
            yield Service(process, environment)


@pytest.fixture
def api(service: Service) -> Iterator[Api]:
    client = service.api()
    yield client
    client.close()


@pytest.fixture
def flat(service: Service) -> Iterator[Callable[[int], None]]:
    """`flat(MIB)`: the worker has hardly more memory than before; it is the same one."""
    worker, before = service.worker, service.memory_bytes

    def check(more_bytes: int) -> None:
        assert service.memory_bytes - before < more_bytes

    yield check
    assert service.worker == worker


def served(api: Api) -> bool:
    """Whether the service takes a call."""
    try:
        return bool(api.draft().book_id)
    except grpc.RpcError:
        return False


# --- calls and connections ----------------------------------------------------------------------


def test_of_ten_thousand_streams_on_a_connection_two_thousand_are_open(
    service: Service, api: Api, flat: Callable[[int], None]
) -> None:
    with closing(frames.connect(service.port)) as client:
        for number in range(10_000):
            client.sendall(frames.opening(2 * number + 1, IMPORT))
        ended = (it for it in frames.answers(client, PATIENCE_S) if it[0] == frames.RST_STREAM)
        assert len(list(islice(ended, 8_000))) == 8_000
        flat(200 * MIB)
        assert served(api)


def test_more_calls_than_a_worker_keeps_open_are_refused_whatever_they_wait_for(
    service: Service, flat: Callable[[int], None]
) -> None:
    api = service.api()
    assert served(api)  # it is connected
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(frames.connect(service.port))) for _ in range(8)]
        for client in clients:
            for number in range(1_000):
                client.sendall(frames.opening(2 * number + 1, REDEEM))
        until(lambda: is_overloaded(api))
        flat(300 * MIB)
    until(lambda: served(api))
    assert 'reason="OVERLOADED"' in fetch(service.environment, "metrics")
    api.close()


def is_overloaded(api: Api) -> bool:
    """Whether a call is refused as one too many; gRPC cancels some before anybody sees them."""
    try:
        return tried(api.draft) == "OVERLOADED"
    except AssertionError:  # no reason
        return False


def test_a_client_that_opens_an_upload_and_sends_nothing_is_sent_away(api: Api) -> None:
    uploads = [api.codes.ImportCodes(never()) for _ in range(20)]
    for upload in uploads:
        with refused("DEADLINE_EXCEEDED"):
            next(upload)


def never() -> Iterator[codes.ImportCodesRequest]:
    """Requests that do not come."""
    time.sleep(PATIENCE_S)
    yield codes.ImportCodesRequest()


def test_more_connections_than_a_worker_keeps_are_closed(service: Service, api: Api) -> None:
    assert served(api)
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(frames.connect(service.port))) for _ in range(300)]
        for client in clients:
            with suppress(OSError):  # it is closed
                frames.confirm_settings(client)
        until(lambda: sum(map(is_closed, clients)) >= 300 - CONNECTIONS_MAX)
        assert served(api)
    until(lambda: answers_a_new_connection(service))


def is_closed(client: Any) -> bool:
    """Whether the server has ended the connection."""
    client.settimeout(0.001)
    try:
        while client.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def answers_a_new_connection(service: Service) -> bool:
    with closing(service.api()) as client:
        return served(client)


def test_a_flood_of_pings_ends_the_connection(service: Service, api: Api) -> None:
    with closing(frames.connect(service.port)) as client:
        with suppress(ConnectionError):
            for _ in range(200_000):
                client.sendall(frames.frame(frames.PING, 0, 0, bytes(8)))
            pytest.fail("the flood was let in")
    assert served(api)


# --- sizes --------------------------------------------------------------------------------------


def test_large_metadata_are_refused(api: Api, flat: Callable[[int], None]) -> None:
    request = redemptions.GetLockRequest(lock_id="x")
    with refused("INVALID_ARGUMENT"):
        api.redemptions.GetLock(request, metadata=(("x-some", "a" * 8_000),))
    for size in (20_000, 200_000, 2_000_000):
        with pytest.raises(grpc.RpcError) as caught:
            api.redemptions.GetLock(request, metadata=(("x-large", "a" * size),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    flat(50 * MIB)
    assert served(api)


def test_large_metadata_are_refused_also_of_who_ignores_what_the_server_says(
    service: Service, api: Api, flat: Callable[[int], None]
) -> None:
    with closing(frames.connect(service.port)) as client:
        for number in range(100):
            stream = 2 * number + 1
            client.sendall(frames.opening(stream, REDEEM, [("x-large", "a" * 100_000)]))
        told = (it for it in frames.answers(client, PATIENCE_S) if b"bytes of metadata" in it[2])
        assert len(list(islice(told, 91))) == 91
        flat(50 * MIB)
    assert served(api)


def test_requests_have_their_greatest_size(api: Api) -> None:
    with refused("INVALID_ARGUMENT"):
        api.redemptions.GetLock(redemptions.GetLockRequest(lock_id="x" * 70_000))
    book = api.draft()
    with refused("INVALID_ARGUMENT"):
        api.import_codes(book.book_id, ["A" * 60] * 17_500)
    header = codes.ImportHeader(book_id=book.book_id, request_id=unique("upload"))
    chunk = codes.ImportChunk(chunk_number=1, codes=["A" * 60] * 100_000)
    # Made beforehand: the service waits for a message only for so long.
    sent = [codes.ImportCodesRequest(header=header), codes.ImportCodesRequest(chunk=chunk)]
    messages = [it.SerializeToString() for it in sent]
    channel: Any = api.channel
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(IMPORT)(iter(messages)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert served(api)


def test_a_message_that_is_large_only_when_it_is_unpacked_is_refused(
    service: Service, flat: Callable[[int], None]
) -> None:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{service.port}", options) as channel:
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(GET_LOCK)(bytes(50 * MIB), compression=grpc.Compression.Gzip)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    flat(40 * MIB)


# --- slow readers -------------------------------------------------------------------------------


def test_who_does_not_read_an_export_costs_no_memory(
    service: Service, api: Api, flat: Callable[[int], None]
) -> None:
    book = api.draft()
    request = codes.GenerateCodesRequest(
        book_id=book.book_id, count=30_000, request_id=unique("request")
    )
    assert list(api.codes.GenerateCodes(request))[-1].generated_count == 30_000
    wanted = codes.ExportCodesRequest(book_id=book.book_id)
    size = sum(part.ByteSize() for part in api.codes.ExportCodes(wanted))
    assert size * 100 > 200 * MIB
    with closing(service.api()) as sleeper:
        exports = [sleeper.codes.ExportCodes(wanted) for _ in range(100)]
        for _ in range(5):
            time.sleep(0.5)
            assert served(api)
            flat(100 * MIB)
        assert len(exports) == 100
    until(lambda: sum(len(part.codes) for part in api.codes.ExportCodes(wanted)) == 30_000)


def test_who_does_not_read_the_progress_still_gets_the_codes(service: Service, api: Api) -> None:
    book = api.draft()
    request = codes.GenerateCodesRequest(
        book_id=book.book_id, count=20_000, request_id=unique("request")
    )
    unread = api.codes.GenerateCodes(request)
    until(lambda: api.stats(book.book_id).code_count == 20_000)
    assert list(unread)[-1].generated_count == 20_000


# --- answers ------------------------------------------------------------------------------------

LARGE = struct(**{f"key-{number}": list(range(100)) for number in range(13)})
"""Close to the most that is accepted: 4 KiB as JSON, four times as much on the wire."""


def test_a_page_ends_before_it_is_too_large_for_its_reader(api: Api) -> None:
    assert LARGE.ByteSize() > 12_000
    book = api.book(codes=500, limits=books.BookLimits(max_redemptions_per_user=0))
    users = [f"user-{number}" for number in range(500)]
    business = api.get_book(book.book_id).business_id
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=book.book_id, user_ids=users, metadata=LARGE, request_id=unique("request")
    )
    results = api.assignments.BatchAssignRandomCodes(request).results
    assert all(it.HasField("assignment") for it in results)
    events = api.events(book_id=book.book_id)
    assigned = [it for it in events if it.type == audit.AUDIT_EVENT_TYPE_ASSIGNED]
    assert {it.user_id for it in assigned} == set(users)
    assert len(assigned) == 500
    assert all(it.metadata == LARGE for it in assigned)
    first = api.audit.ListAuditEvents(
        audit.ListAuditEventsRequest(book_id=book.book_id, page_size=1_000)
    )
    assert 0 < len(first.events) < len(events)
    assert business


def some_at_once(call: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Make a call for each of the items: so few at a time that none is refused."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, items))


@pytest.mark.parametrize("what", ["books", "coupons", "redemptions"])
def test_no_list_is_too_large_for_its_reader(api: Api, what: str) -> None:
    count, owner = 300, unique("owner")
    if what == "books":
        some_at_once(lambda _: api.draft(business_id=owner, metadata=LARGE), range(count))
        listed = listing(api.books.ListCouponBooks, books.ListCouponBooksRequest(business_id=owner))
        found = [it.book_id for page in listed for it in page.coupon_books]
    else:
        wanted = new_codes(count)
        api.book(codes=wanted)
        if what == "coupons":
            some_at_once(lambda it: api.assign(it, owner, metadata=LARGE), wanted)
            listed = listing(
                api.assignments.ListUserCoupons, assignments.ListUserCouponsRequest(user_id=owner)
            )
            found = [it.assignment.code for page in listed for it in page.coupons]
        else:
            some_at_once(lambda it: api.redeem(it, owner, metadata=LARGE), wanted)
            listed = listing(
                api.redemptions.ListRedemptions, redemptions.ListRedemptionsRequest(user_id=owner)
            )
            found = [it.code for page in listed for it in page.redemptions]
    assert len(found) == len(set(found)) == count
    assert len(listed) > 1


def listing(list_rpc: Callable[[Any], Any], request: Any) -> list[Any]:
    """All pages of a list that is asked for as much as possible."""
    request.page_size = 1_000
    found: list[Any] = []
    while True:
        found.append(list_rpc(request))
        request.page_token = found[-1].next_page_token
        if not request.page_token:
            return found


# --- hoarding of locks --------------------------------------------------------------------------


def test_a_user_who_locks_many_codes_at_once_gets_exactly_five(api: Api) -> None:
    wanted, user_id, business_id = new_codes(40), unique("user"), unique("business")
    for part in (wanted[:20], wanted[20:]):
        api.book(codes=part, lock_policy=books.LOCK_POLICY_OPTIONAL, business_id=business_id)
    outcomes = all_at_once([lambda it=it: api.lock(it, user_id) for it in wanted])
    assert sum(isinstance(it, redemptions.LockCodeResponse) for it in outcomes) == 5
    held = api.redemptions.ListLocks(redemptions.ListLocksRequest(user_id=user_id)).locks
    assert len(held) == 5


def test_no_lock_is_kept_longer_than_its_greatest_time_and_three_extensions(api: Api) -> None:
    (code,), user_id = new_codes(1), unique("user")
    api.book(codes=[code], lock_policy=books.LOCK_POLICY_OPTIONAL)
    answer = api.lock(code, user_id, ttl_s=86_400)
    ends = [answer.lock.expire_time.ToDatetime()]
    for _ in range(3):
        request = redemptions.ExtendLockRequest(
            lock_token=answer.lock_token, request_id=unique("request")
        )
        request.ttl.FromSeconds(86_400)
        answer = api.redemptions.ExtendLock(request)
        ends.append(answer.lock.expire_time.ToDatetime())
    began = answer.lock.create_time.ToDatetime()
    assert (ends[0] - began).total_seconds() <= 901
    assert (ends[-1] - began).total_seconds() <= 4 * 901
    with refused("LOCK_LIMIT_EXCEEDED"):
        api.redemptions.ExtendLock(
            redemptions.ExtendLockRequest(
                lock_token=answer.lock_token, request_id=unique("request")
            )
        )
