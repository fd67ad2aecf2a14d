"""WatchAuditEvents sends every event once and in order, and goes on where it was."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from support.ledger_writers import write
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    reason_of,
    refused,
    settings_for,
    unique,
)
from support.token_clients import ISSUER
from support.waiting import PATIENCE, WITHIN_S, until

from coupon_service.rpc import audit_watches
from coupon_service.security.bearer_tokens import LEEWAY_S
from coupon_service.store.queries import followed_events

TYPE = audit.AuditEventType

Message = audit.WatchAuditEventsResponse


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream soon says that it has caught up, where the last events are not for it."""
    monkeypatch.setattr(audit_watches, "HEARTBEAT_S", 0.1)


@contextmanager
def watching(api: Api, **fields: Any) -> Generator[Iterator[Message]]:
    """The messages of a stream, which ends with the block."""
    request = audit.WatchAuditEventsRequest(**fields)
    stream = api.audit.WatchAuditEvents(request, timeout=WITHIN_S * PATIENCE)
    try:
        yield stream
    finally:
        stream.cancel()


def events_of(
    messages: Iterable[Message], enough: Callable[[list[audit.AuditEvent]], bool]
) -> tuple[list[audit.AuditEvent], str]:
    """The events up to when there are enough, and the token after them."""
    events: list[audit.AuditEvent] = []
    for message in messages:
        events += message.events
        if enough(events):
            return events, message.resume_token
    raise AssertionError("the stream has ended")


def all_until_now(messages: Iterable[Message]) -> tuple[list[audit.AuditEvent], str]:
    """The events up to the first message that has nothing after it."""
    events: list[audit.AuditEvent] = []
    for message in messages:
        events += message.events
        if message.HasField("complete_time"):
            return events, message.resume_token
    raise AssertionError("the stream has ended")


def a_story(api: Api) -> books.CouponBook:
    """A book some of whose codes were assigned and redeemed."""
    book = api.book(codes=3)
    for user in ("ann", "bob"):
        code = api.assign_random(book.book_id, user).assignment.code
        api.redeem(code, user)
    return book


KINDS = [
    TYPE.AUDIT_EVENT_TYPE_BOOK_CREATED,
    TYPE.AUDIT_EVENT_TYPE_BOOK_ACTIVATED,
    TYPE.AUDIT_EVENT_TYPE_CODES_IMPORTED,
    *[TYPE.AUDIT_EVENT_TYPE_ASSIGNED, TYPE.AUDIT_EVENT_TYPE_REDEEMED] * 2,
]


@pytest.fixture
def own(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[tuple[ServerThread, Api, str]]:
    with new_database() as url:
        settings = settings_for(url, redis_server_url, watchers_max=3, watchers_of_caller_max=2)
        with ServerThread(settings) as server:
            api = Api(server.address)
            yield server, api, url
            api.close()


def test_the_past_comes_first_and_then_what_happens(api: Api) -> None:
    book = a_story(api)
    with watching(api, book_id=book.book_id) as messages:
        events, _ = all_until_now(messages)
        assert sorted(it.type for it in events) == sorted(KINDS)
        assert [it.sequence for it in events] == sorted({it.sequence for it in events})
        assert events[0].sequence > 0
        api.assign_random(book.book_id, "eve")
        later, _ = events_of(messages, bool)
        assert [(it.type, it.user_id) for it in later] == [(TYPE.AUDIT_EVENT_TYPE_ASSIGNED, "eve")]
    listed = api.events(book_id=book.book_id)
    assert {it.event_id: it for it in listed} == {it.event_id: it for it in events + later}


def test_a_stream_goes_on_after_its_token(api: Api) -> None:
    book = a_story(api)
    with watching(api, book_id=book.book_id) as messages:
        events, token = all_until_now(messages)
    api.assign_random(book.book_id, "eve")
    with watching(api, book_id=book.book_id, resume_token=token) as messages:
        more, _ = events_of(messages, bool)
    assert [it.user_id for it in more] == ["eve"]
    assert more[0].sequence > events[-1].sequence


def test_a_stream_may_end_where_the_ledger_does(api: Api) -> None:
    book = a_story(api)
    request = audit.WatchAuditEventsRequest(book_id=book.book_id, stop_at_end=True)
    messages = list(api.audit.WatchAuditEvents(request))
    assert sorted(event.type for it in messages for event in it.events) == sorted(KINDS)
    assert [it.HasField("complete_time") for it in messages].index(True) == len(messages) - 1
    request.resume_token = messages[-1].resume_token
    (empty,) = api.audit.WatchAuditEvents(request)
    assert not empty.events
    with watching(api, book_id=book.book_id, resume_token=empty.resume_token) as more:
        api.assign_random(book.book_id, "eve")
        events, _ = events_of(more, bool)
    assert [it.user_id for it in events] == ["eve"]


def test_it_begins_now_or_at_a_time(api: Api) -> None:
    book = a_story(api)
    whole, _ = _watched(api, book)
    with watching(api, book_id=book.book_id, from_now=True) as messages:
        assert not next(messages).events
        api.assign_random(book.book_id, "eve")
        later, _ = events_of(messages, bool)
    assert [it.user_id for it in later] == ["eve"]
    middle = whole[len(whole) // 2].event_time
    since, _ = _watched(api, book, start_time=middle)
    assert since == [it for it in [*whole, *later] if _time(it) >= _key(middle)]


def _watched(api: Api, book: books.CouponBook, **fields: Any) -> tuple[list[audit.AuditEvent], str]:
    with watching(api, book_id=book.book_id, **fields) as messages:
        return all_until_now(messages)


def _time(event: audit.AuditEvent) -> tuple[int, int]:
    return _key(event.event_time)


def _key(time: Any) -> tuple[int, int]:
    return time.seconds, time.nanos


def test_filters_are_combined(api: Api) -> None:
    book = a_story(api)
    whole, _ = _watched(api, book)
    code = next(it.code for it in whole if it.user_id == "ann")
    paths: list[tuple[dict[str, Any], Callable[[audit.AuditEvent], bool]]] = [
        ({"code": code}, lambda it: it.code == code),
        ({"user_id": "ann"}, lambda it: it.user_id == "ann"),
        (
            {"types": [TYPE.AUDIT_EVENT_TYPE_REDEEMED]},
            lambda it: it.type == TYPE.AUDIT_EVENT_TYPE_REDEEMED,
        ),
        ({"business_id": book.business_id}, lambda _: True),
        ({"business_id": unique("nobody")}, lambda _: False),
        (
            {"user_id": "bob", "types": [TYPE.AUDIT_EVENT_TYPE_ASSIGNED]},
            lambda it: it.user_id == "bob" and it.type == TYPE.AUDIT_EVENT_TYPE_ASSIGNED,
        ),
    ]
    for fields, matches in paths:
        found, _ = _watched(api, book, **fields)
        assert found == [it for it in whole if matches(it)], fields


def test_a_token_is_for_its_own_filters(api: Api) -> None:
    book = api.draft()
    _, token = _watched(api, book)
    for fields in ({"user_id": "ann"}, {"business_id": book.business_id}):
        with refused("INVALID_ARGUMENT", grpc.StatusCode.INVALID_ARGUMENT):
            _watched(api, book, resume_token=token, **fields)
    for bad in ("nonsense", token[:-2] + "AA", token + "A"):
        with refused("INVALID_ARGUMENT", grpc.StatusCode.INVALID_ARGUMENT):
            _watched(api, book, resume_token=bad)


def test_pages_are_bounded_and_few_matches_move_on_as_well(
    own: tuple[ServerThread, Api, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_events, "WINDOW", 3)
    _, api, _ = own
    books_made = [a_story(api) for _ in range(3)]
    for book in books_made:
        events, _ = _watched(api, book)
        assert sorted(it.type for it in events) == sorted(KINDS)


def test_without_events_a_stream_says_how_far_it_is(api: Api) -> None:
    book = api.draft()
    with watching(api, book_id=book.book_id, from_now=True) as messages:
        beats = list(itertools.islice(messages, 3))
    times = [_key(it.complete_time) for it in beats]
    assert times == sorted(times)
    assert times[0] < times[-1]
    assert all(it.resume_token and not it.events for it in beats)


# --- in pages -------------------------------------------------------------------------------------


def test_pages_oldest_first_are_in_the_same_order_and_say_until_when_they_are_complete(
    own: tuple[ServerThread, Api, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_events, "WINDOW", 4)
    _, api, _ = own
    book = a_story(api)
    whole, _ = _watched(api, book)
    middle = whole[3].event_time
    cases: list[tuple[dict[str, Any], list[audit.AuditEvent]]] = [
        ({}, whole),
        ({"user_id": "ann"}, [it for it in whole if it.user_id == "ann"]),
        ({"start_time": middle}, [it for it in whole if _time(it) >= _key(middle)]),
        ({"end_time": middle}, [it for it in whole if _time(it) < _key(middle)]),
    ]
    for fields, wanted in cases:
        for size in (1, 3, 100):
            request = audit.ListAuditEventsRequest(
                book_id=book.book_id, oldest_first=True, page_size=size, **fields
            )
            assert _listed(api, request) == wanted


def _listed(api: Api, request: audit.ListAuditEventsRequest) -> list[audit.AuditEvent]:
    """The events of all pages."""
    found: list[audit.AuditEvent] = []
    while True:
        page = api.audit.ListAuditEvents(request)
        assert len(page.events) <= request.page_size
        found += page.events
        request.page_token = page.next_page_token
        assert page.HasField("complete_time") is (not page.next_page_token)
        if not request.page_token:
            return found


def test_a_token_of_one_order_is_none_of_the_other(api: Api) -> None:
    request = audit.ListAuditEventsRequest(book_id=a_story(api).book_id, page_size=1)
    request.page_token = api.audit.ListAuditEvents(request).next_page_token
    request.oldest_first = True
    with refused("INVALID_ARGUMENT", grpc.StatusCode.INVALID_ARGUMENT):
        api.audit.ListAuditEvents(request)


# --- on a server of its own -----------------------------------------------------------------------


def test_what_may_be_preceded_by_another_event_waits(own: tuple[ServerThread, Api, str]) -> None:
    _, api, url = own
    book = a_story(api)
    with psycopg.connect(url) as late, watching(api, book_id=book.book_id) as messages:
        before, _ = all_until_now(messages)
        write(late, book_id=book.book_id)
        api.assign_random(book.book_id, "eve")
        stalled = next(it for it in messages if it.HasField("stall"))
        assert not stalled.events
        assert stalled.stall.duration.ToSeconds() >= 2
        assert f"backend {late.info.backend_pid}," in " ".join(stalled.stall.holders)
        late.commit()
        events, _ = events_of(messages, lambda it: len(it) == 2)
    numbers = [it.sequence for it in [*before, *events]]
    assert numbers == sorted(set(numbers))
    assert [it.user_id for it in events] == ["", "eve"]


def test_a_stream_that_begins_while_new_events_are_held_up_says_so(
    own: tuple[ServerThread, Api, str],
) -> None:
    _, api, url = own
    book = a_story(api)
    with psycopg.connect(url) as late:
        write(late, book_id=book.book_id)
        with watching(api, book_id=book.book_id) as messages:
            first = next(messages)
            assert not first.events
            assert f"backend {late.info.backend_pid}," in " ".join(first.stall.holders)
            late.commit()
            events, _ = events_of(messages, lambda it: len(it) == len(KINDS) + 1)
    assert len({it.event_id for it in events}) == len(KINDS) + 1


def test_events_of_before_numbers_come_first_by_their_time(
    own: tuple[ServerThread, Api, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_events, "WINDOW", 4)
    _, api, url = own
    book = a_story(api)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("ALTER TABLE redemption_audit DISABLE TRIGGER ALL")
        owner.execute("UPDATE redemption_audit SET sequence = NULL")
        owner.execute("ALTER TABLE redemption_audit ENABLE TRIGGER ALL")
    api.assign_random(book.book_id, "eve")
    events, token = _watched(api, book)
    old = [it for it in events if not it.sequence]
    assert sorted(it.type for it in old) == sorted(KINDS)
    assert old == sorted(old, key=lambda it: (_time(it), it.event_id))
    assert [it.user_id for it in events[len(old) :]] == ["eve"]
    middle = old[3]
    since, _ = _watched(api, book, start_time=middle.event_time)
    assert since == [it for it in events if _time(it) >= _time(middle)]
    assert token


def test_a_token_ahead_of_the_ledger_is_refused(own: tuple[ServerThread, Api, str]) -> None:
    _, api, url = own
    book = a_story(api)
    with watching(api) as messages:
        events, token = all_until_now(messages)
    last = events[-1]
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("ALTER TABLE redemption_audit DISABLE TRIGGER ALL")
        owner.execute("DELETE FROM redemption_audit WHERE sequence = %s", [last.sequence])
        owner.execute("SELECT setval('redemption_audit_numbers', %s)", [last.sequence - 1])
        owner.execute("ALTER TABLE redemption_audit ENABLE TRIGGER ALL")
    with watching(api, resume_token=token) as messages:
        with refused("RESUME_TOKEN_AHEAD", grpc.StatusCode.FAILED_PRECONDITION):
            next(messages)
    api.assign_random(book.book_id, "eve")  # it gets the number of the one that was lost
    with watching(api, resume_token=token) as messages:
        with refused("RESUME_TOKEN_AHEAD", grpc.StatusCode.FAILED_PRECONDITION):
            next(messages)


def test_a_caller_and_a_worker_have_only_so_many(own: tuple[ServerThread, Api, str]) -> None:
    server, api, _ = own
    other = Api(server.address)
    with watching(api, from_now=True) as one, watching(api, from_now=True) as two:
        next(one)
        next(two)
        with watching(api) as three, refused("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED):
            next(three)
        with watching(other) as three:
            next(three)
            with watching(other) as four, refused("OVERLOADED"):
                next(four)
    other.close()
    gone = "coupon_audit_watchers"
    until(lambda: server.registry.get_sample_value(gone) == 0)
    with watching(api) as again:
        next(again)


def test_a_server_that_stops_ends_streams_with_a_status_that_resumes(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> None:
    with new_database() as url:
        settings = settings_for(url, redis_server_url)
        with ServerThread(settings) as server:
            api = Api(server.address)
            stream = api.audit.WatchAuditEvents(audit.WatchAuditEventsRequest())
            token = next(stream).resume_token
        with pytest.raises(grpc.RpcError) as ended:
            list(stream)
        assert reason_of(ended.value) == "STREAM_ENDED"
        api.close()
        with ServerThread(settings) as server:
            api = Api(server.address)
            book = api.draft()
            with watching(api, resume_token=token) as messages:
                events, _ = events_of(messages, bool)
            assert [it.book_id for it in events] == [book.book_id]
            api.close()


def test_a_reader_that_does_not_read_holds_one_page(
    own: tuple[ServerThread, Api, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read from the database no further than the line takes."""
    read = 0
    real = followed_events.select_followed

    async def counted(*arguments: Any) -> Any:
        nonlocal read
        page = await real(*arguments)
        read += len(page.events)
        return page

    monkeypatch.setattr("coupon_service.store.ledger_feed.select_followed", counted)
    _, api, url = own
    book = api.draft()
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(40):
            write(connection, 1_000, book_id=book.book_id)
    with watching(api, book_id=book.book_id) as messages:
        first = next(messages)
        until(lambda: read >= 2 * len(first.events))
        seen = read
        until(lambda: _is_quiet(lambda: read))
        assert read < 40_000
        assert seen <= read
        events, _ = events_of(messages, lambda it: len(first.events) + len(it) == 40_001)
    numbers = [it.sequence for it in [*first.events, *events]]
    assert numbers == sorted(set(numbers))


def _is_quiet(value: Callable[[], int]) -> bool:
    before = value()
    time.sleep(0.5)
    return value() == before


def test_a_stream_ends_with_its_token(guarded: ServerThread) -> None:
    token = ISSUER.token(roles=["auditor"], exp=int(time.time()) - LEEWAY_S + 2)
    api = Api(guarded.address, token)
    with watching(api, from_now=True) as messages, refused("UNAUTHENTICATED"):
        list(messages)
    api.close()
