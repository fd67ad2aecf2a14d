"""A server whose closed books are archived, and books for that."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from support.invariants import assert_adds_up
from support.sealed_now import seal_ledger
from support.service import (
    Api,
    ServerThread,
    audit,
    books,
    euros,
    new_codes,
    settings_for,
    unique,
)

from coupon_service.store import finishing
from coupon_service.store.archiving import archive as archiving
from coupon_service.store.archiving.restore import restore

BUSINESS = unique("archivist")
OF_BUSINESS = {"business_id": BUSINESS}

SOON = timedelta(minutes=1)
"""Books that are closed now were closed before that."""


@dataclass
class Stage:
    """A server with a database of its own, whose ledger is sealed when it is asked for."""

    server: ServerThread
    api: Api
    folder: Path

    @property
    def url(self) -> str:
        return self.server.database_url

    def archive(self, *book_ids: str, **given: Any) -> list[Path]:
        """Seals the ledger and archives the books; returns the files."""
        seal_ledger(self.url)
        soon = datetime.now(UTC) + SOON
        done = archiving.archive(self.url, self.folder, soon, map_uuids(book_ids), **given)
        return [self.folder / it.file_name for it in done]

    def restore(self, file: Path) -> None:
        with file.open("rb") as opened:
            restore(self.url, opened)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode()).fetchall()

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that is stored, but for what the ledger says of archives, and of seals."""
        return {
            table: self.rows(f"SELECT to_jsonb(t)::text FROM {table} AS t {where} ORDER BY 1")
            for table, where in DUMPED.items()
        }

    def adds_up(self) -> None:
        with psycopg.connect(self.url) as connection:
            assert_adds_up(connection)


DUMPED = {
    "redemption_audit": "WHERE type NOT IN (43, 44)",
    "coupon_assignments": "",
    "coupon_codes": "",
    "coupon_book_counters": "",
    "coupon_user_counters": "",
    "coupon_order_books": "",
    "coupon_orders": "",
    "coupon_adjustments": "",
    "coupon_archived_events": "",
    "coupon_archived_codes": "",
    "coupon_archived_ranges": "",
    "coupon_archived_assignments": "",
    "coupon_archived_orders": "",
}


def map_uuids(ids: Iterable[str]) -> list[UUID]:
    return list(map(UUID, ids))


@contextmanager
def archivist(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str, folder: Path
) -> Generator[Stage]:
    """A stage, on which codes of closed books can be used again."""
    with new_database() as url:
        assert list(finishing.finish(url))
        settings = settings_for(url, redis_url, default_business=BUSINESS, seal_interval_ms=0)
        with ServerThread(settings) as server, closing(Api(server.address)) as api:
            yield Stage(server, api, folder)


def verified(api: Api) -> list[audit.VerifyAuditResponse]:
    """What VerifyAudit says."""
    return list(api.audit.VerifyAudit(audit.VerifyAuditRequest()))


def findings(api: Api) -> list[audit.AuditFinding]:
    """What it finds."""
    return [found for answer in verified(api) for found in answer.findings]


@dataclass
class Campaign:
    """A closed book, and what was done in it, by the requests that did it."""

    book_id: str
    names: list[str]
    redeemed: list[tuple[str, str, dict[str, Any], str]]
    rolled_back: str
    adjusted: str


def campaign(api: Api, **fields: Any) -> Campaign:
    """A book with assignments, locks, redemptions, a roll-back and an adjustment, closed."""
    names = new_codes(6)
    limits = books.BookLimits(max_redemptions_per_code=3, max_redemptions_per_user=9)
    given = {"limits": limits, "lock_policy": books.LOCK_POLICY_OPTIONAL, **OF_BUSINESS, **fields}
    book_id = api.book(codes=names, **given).book_id
    redeemed: list[tuple[str, str, dict[str, Any], str]] = []
    for number, code in enumerate(names[:4]):
        user = unique("user")
        if number % 2:
            api.assign(code, user)
        token = api.lock(code, user).lock_token if number == 2 else ""
        wish = {
            "request_id": unique("request"),
            "order_id": unique("order"),
            "order_amount": euros(5_000),
            "lock_token": token,
        }
        answer = api.redeem(code, user, **wish)
        redeemed.append((code, user, wish, answer.redemption.redemption_id))
    api.rollback(redeemed[0][3])
    api.adjust(redeemed[1][3], euros(3_000))
    given_to = unique("user")
    api.assign(names[4], given_to)
    api.transfer(names[4], given_to, unique("user"))
    api.disable(names[5])
    api.close_book(book_id)
    return Campaign(book_id, names, redeemed, redeemed[0][3], redeemed[1][3])
