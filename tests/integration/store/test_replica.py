"""A read replica answers what may be a little behind, and nothing else."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from support.calls import tried
from support.postgres_roles import execute
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    codes,
    pages,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.standbys import Standby, replicated
from support.waiting import until

from coupon_service.embedded import EmbeddedPostgres
from coupon_service.rpc.freshness import LAG_KEY
from coupon_service.telemetry.readiness import Readiness

READS = "coupon_replica_reads_total"
PATIENT_MS = 600_000
HURRIED_MS = 200


class Replicated:
    """A service with a primary and a read replica."""

    def __init__(self, server: ServerThread, primary: EmbeddedPostgres, standby: Standby) -> None:
        self.server = server
        self.primary = primary
        self.standby = standby
        self.api = Api(server.address)
        self._reported: list[Readiness] = []

        def report(found: Readiness, _: Sequence[Readiness]) -> None:
            self._reported.append(found)

        server.server._readiness_changed = report  # type: ignore[method-assign]

    def answered(self, by: str, reason: str = "") -> float:
        """So many reads were answered by this server."""
        labels = {"answered_by": by, "reason": reason}
        return self.server.registry.get_sample_value(READS, labels) or 0

    @property
    def readiness(self) -> Readiness:
        """What its worker has reported last."""
        return self._reported[-1] if self._reported else Readiness(0)

    def catch_up(self) -> None:
        """Wait until the replica has all that was committed."""
        with psycopg.connect(self.primary.url, autocommit=True) as primary:
            row = primary.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        with psycopg.connect(self.standby.url, autocommit=True) as standby:
            reached = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            until(lambda: standby.execute(reached, row).fetchone() == (True,))

    def stop_replay(self) -> None:
        """From here on the replica falls behind."""
        self.catch_up()
        execute(self.standby.url, "SELECT pg_wal_replay_pause()")
        paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
        with psycopg.connect(self.standby.url, autocommit=True) as standby:
            until(lambda: standby.execute(paused).fetchone() == (True,))

    def go_on(self) -> None:
        execute(self.standby.url, "SELECT pg_wal_replay_resume()")


@pytest.fixture(scope="module")
def servers(server_folder: Path) -> Iterator[tuple[EmbeddedPostgres, Standby]]:
    folder = server_folder / "replicated"
    folder.mkdir()
    with replicated(folder) as (primary, standby):
        yield primary, standby


def running(
    servers: tuple[EmbeddedPostgres, Standby], redis_url: str, lag_max_ms: int
) -> Iterator[Replicated]:
    primary, standby = servers
    settings = settings_for(
        primary.url,
        redis_url,
        replica_url=SecretStr(standby.url),
        replica_max_lag_ms=lag_max_ms,
    )
    with ServerThread(settings) as server:
        it = Replicated(server, primary, standby)
        with closing(it.api):
            until(lambda: _first(it))
            yield it


def _first(it: Replicated) -> bool:
    """Whether a probe has found the replica."""
    tried(lambda: it.api.audit.ListAuditEvents(audit.ListAuditEventsRequest(page_size=1)))
    return it.answered("replica") > 0


@pytest.fixture
def patient(
    servers: tuple[EmbeddedPostgres, Standby], redis_server_url: str
) -> Iterator[Replicated]:
    """However slow the machine, the replica is near enough; only what stops it is too much."""
    yield from running(servers, redis_server_url, PATIENT_MS)


@pytest.fixture
def hurried(
    servers: tuple[EmbeddedPostgres, Standby], redis_server_url: str
) -> Iterator[Replicated]:
    """It soon notices that the replica is behind."""
    yield from running(servers, redis_server_url, HURRIED_MS)


def with_lag(method: Any, request: Any) -> tuple[Any, int | None]:
    """The answer of a call, and what its trailing metadata say of the lag."""
    answer, call = method.with_call(request)
    told = dict(call.trailing_metadata()).get(LAG_KEY)
    return answer, int(told) if told is not None else None


def test_the_replica_answers_what_may_be_behind_and_says_by_how_much(patient: Replicated) -> None:
    api = patient.api
    code = api.code()
    api.redeem(code, "ann")
    book_id = api.get_code(code).book_id
    patient.catch_up()
    before = patient.answered("replica")
    events, lag_ms = with_lag(
        api.audit.ListAuditEvents, audit.ListAuditEventsRequest(book_id=book_id)
    )
    assert events.events[0].type == audit.AUDIT_EVENT_TYPE_REDEEMED
    assert lag_ms is not None
    assert 0 <= lag_ms <= PATIENT_MS
    stats, lag_ms = with_lag(
        api.books.GetCouponBookStats, books.GetCouponBookStatsRequest(book_id=book_id)
    )
    assert (stats.stats.redemption_count, lag_ms is None) == (1, False)
    refusals, lag_ms = with_lag(
        api.redemptions.ListRefusals, redemptions.ListRefusalsRequest(book_id=book_id)
    )
    assert (list(refusals.refusals), lag_ms is None) == ([], False)
    exported = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book_id))
    assert [it.code for page in exported for it in page.codes] == [code]
    assert LAG_KEY in dict(exported.trailing_metadata())
    assert patient.answered("replica") == before + 4


def test_what_has_to_be_new_is_never_asked_of_the_replica(patient: Replicated) -> None:
    api = patient.api
    patient.stop_replay()
    try:
        user = unique("user")
        code = api.code(lock_policy=books.LOCK_POLICY_OPTIONAL)
        book_id = api.get_code(code).book_id
        assert api.validate(code, user).valid
        lock = api.lock(code, user)
        api.redeem(code, user, lock_token=lock.lock_token)
        with refused("CODE_ALREADY_REDEEMED"):
            api.redeem(code, user)
        request = redemptions.ListRedemptionsRequest(user_id=user)
        assert len(api.redemptions.ListRedemptions(request).redemptions) == 1
        found = api.codes.ListCodes(codes.ListCodesRequest(book_id=book_id))
        assert [it.code for it in found.codes] == [code]
    finally:
        patient.go_on()


def test_a_book_that_the_replica_does_not_have_yet_is_found(patient: Replicated) -> None:
    patient.stop_replay()
    try:
        book_id = patient.api.book().book_id
        request = books.GetCouponBookStatsRequest(book_id=book_id)
        _, lag_ms = with_lag(patient.api.books.GetCouponBookStats, request)
        assert lag_ms is None
        assert patient.answered("primary", "not_found") >= 1
    finally:
        patient.go_on()


def test_beyond_the_bound_the_primary_answers(hurried: Replicated) -> None:
    hurried.stop_replay()
    try:
        api = hurried.api
        code = api.code()  # something that the replica does not have
        book_id = api.get_code(code).book_id
        until(lambda: _answered(hurried, "primary", "behind"))
        events, lag_ms = with_lag(
            api.audit.ListAuditEvents, audit.ListAuditEventsRequest(book_id=book_id)
        )
        assert events.events
        assert lag_ms is None
        until(lambda: Readiness.REPLICA_BEHIND in hurried.readiness)
        assert Readiness.SERVING in hurried.readiness
    finally:
        hurried.go_on()
    until(lambda: _answered(hurried, "replica"))


def _answered(it: Replicated, by: str, reason: str = "") -> bool:
    """Whether a read that is made now is answered so."""
    before = it.answered(by, reason)
    it.api.audit.ListAuditEvents(audit.ListAuditEventsRequest(page_size=1))
    return it.answered(by, reason) > before


def test_page_tokens_go_on_from_one_to_the_other(hurried: Replicated) -> None:
    api = hurried.api
    book = api.book(codes=7)
    hurried.catch_up()
    request = audit.ListAuditEventsRequest(book_id=book.book_id, page_size=1)
    until(lambda: _answered(hurried, "replica"))
    first = api.audit.ListAuditEvents(request)
    whole = [it for page in pages(api.audit.ListAuditEvents, request, "events") for it in page]
    hurried.stop_replay()
    try:
        api.draft()
        until(lambda: _answered(hurried, "primary", "behind"))
        request.page_token = first.next_page_token
        rest = [it for page in pages(api.audit.ListAuditEvents, request, "events") for it in page]
        assert [*first.events, *rest] == whole
    finally:
        hurried.go_on()


def test_when_the_replica_is_away_the_primary_answers(hurried: Replicated) -> None:
    hurried.standby.stop()
    try:
        execute(hurried.primary.url, "ALTER SYSTEM RESET synchronous_standby_names")
        execute(hurried.primary.url, "SELECT pg_reload_conf()")
        for _ in range(5):  # also at the moment in which nobody knows it yet
            request = audit.ListAuditEventsRequest(page_size=1)
            assert hurried.api.audit.ListAuditEvents(request).events
        until(lambda: _answered(hurried, "primary", "away"))
        until(lambda: Readiness.REPLICA_AWAY in hurried.readiness)
        assert Readiness.SERVING in hurried.readiness
        exported = hurried.api.codes.ExportCodes(
            codes.ExportCodesRequest(book_id=hurried.api.book(codes=3).book_id)
        )
        assert sum(len(page.codes) for page in exported) == 3
    finally:
        hurried.standby.start()
    until(lambda: _answered(hurried, "replica"))


def test_a_replica_that_hangs_holds_up_no_answer(hurried: Replicated) -> None:
    hurried.standby.pause()
    try:
        for _ in range(5):
            request = audit.ListAuditEventsRequest(page_size=1)
            assert hurried.api.audit.ListAuditEvents(request, timeout=60).events
        until(lambda: _answered(hurried, "primary", "away"))
        until(lambda: Readiness.REPLICA_AWAY in hurried.readiness)
    finally:
        hurried.standby.resume()
    until(lambda: _answered(hurried, "replica"))


def test_a_server_that_is_no_standby_is_never_asked(
    servers: tuple[EmbeddedPostgres, Standby], redis_server_url: str
) -> None:
    primary, _ = servers
    settings = settings_for(
        primary.url, redis_server_url, replica_url=SecretStr(primary.url), replica_max_lag_ms=200
    )
    with ServerThread(settings) as server, closing(Api(server.address)) as api:
        for _ in range(3):
            request = audit.ListAuditEventsRequest(page_size=1)
            _, lag_ms = with_lag(api.audit.ListAuditEvents, request)
            assert lag_ms is None
