"""ListAuditEvents by every filter, and a ledger that the database does not let anybody alter."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

import psycopg
import pytest
from support.service import Api, ServerThread, audit, new_codes, unique

REDEEMED = audit.AUDIT_EVENT_TYPE_REDEEMED


@pytest.fixture(scope="module")
def story(api: Api) -> dict[str, Any]:
    """Two books, three codes, two users, two orders of which one is about two codes."""
    one, two, three = new_codes(3)
    user, other, order, both = (unique(it) for it in ("user", "other", "order", "both"))
    first, second = api.book(codes=[one, two]), api.book(codes=[three])
    api.assign(one, user)
    api.redeem(one, user, order_id=both)
    rolled_back = api.redeem(two, other, order_id=order).redemption.redemption_id
    api.rollback(rolled_back)
    api.redeem(three, user, order_id=both)
    return {
        "first": first.book_id,
        "second": second.book_id,
        "one": one,
        "two": two,
        "three": three,
        "user": user,
        "other": other,
        "order": order,
        "both": both,
    }


def _id_of(parameter: dict[str, str] | list[str]) -> str:
    return "+".join(parameter.values()) if isinstance(parameter, dict) else ""


BOOK = ["BOOK_CREATED", "CODES_IMPORTED", "BOOK_ACTIVATED"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"book_id": "first"}, [*BOOK, "ASSIGNED", "REDEEMED", "REDEEMED", "ROLLED_BACK"]),
        ({"book_id": "second"}, [*BOOK, "REDEEMED"]),
        ({"code": "one"}, ["ASSIGNED", "REDEEMED"]),
        ({"code": "two"}, ["REDEEMED", "ROLLED_BACK"]),
        ({"user_id": "user"}, ["ASSIGNED", "REDEEMED", "REDEEMED"]),
        ({"user_id": "other"}, ["REDEEMED", "ROLLED_BACK"]),
        ({"order_id": "order"}, ["REDEEMED", "ROLLED_BACK"]),
        ({"order_id": "both"}, ["REDEEMED", "REDEEMED"]),
        ({"order_id": "both", "code": "three"}, ["REDEEMED"]),
        ({"order_id": "both", "book_id": "first"}, ["REDEEMED"]),
        ({"order_id": "both", "user_id": "other"}, []),
        ({"code": "one", "user_id": "user"}, ["ASSIGNED", "REDEEMED"]),
        ({"code": "one", "book_id": "second"}, []),
        ({"user_id": "user", "book_id": "second"}, ["REDEEMED"]),
        ({"code": "one", "user_id": "user", "book_id": "first", "order_id": "both"}, ["REDEEMED"]),
    ],
    ids=_id_of,
)
def test_events_are_filtered_by_what_they_are_about(
    api: Api, story: dict[str, Any], filters: dict[str, str], expected: list[str]
) -> None:
    wanted = {name: story[value] for name, value in filters.items()}
    assert api.event_names(**wanted) == expected
    only = [name for name in expected if name == "REDEEMED"]
    assert api.event_names(**wanted, types=[REDEEMED]) == only
    some = [REDEEMED, audit.AUDIT_EVENT_TYPE_BOOK_CREATED, REDEEMED]
    kept = [name for name in expected if name in ("REDEEMED", "BOOK_CREATED")]
    assert api.event_names(**wanted, types=some) == kept
    assert api.event_names(**wanted, types=[audit.AUDIT_EVENT_TYPE_CODE_ENABLED]) == []


@pytest.mark.parametrize("by", ["book_id", "code", "user_id", "order_id"])
def test_events_are_filtered_by_time_with_its_beginning_and_without_its_end(
    api: Api, story: dict[str, Any], by: str
) -> None:
    value = story[{"book_id": "first", "code": "one", "user_id": "user", "order_id": "order"}[by]]
    events = api.events(**{by: value})
    times = [event.event_time for event in events]
    middle = times[-1]
    assert api.events(**{by: value}, start_time=middle) == events[-1:]
    assert api.events(**{by: value}, end_time=middle) == events[:-1]
    assert api.events(**{by: value}, start_time=times[0], end_time=middle) == events[:-1]
    after = middle.ToDatetime(UTC) + timedelta(microseconds=1)
    assert api.events(**{by: value}, start_time=after) == []
    assert api.events(**{by: value}, end_time=after) == events


def test_a_code_is_looked_for_as_typed(api: Api, story: dict[str, Any]) -> None:
    code: str = story["one"]
    assert api.events(code=f" {code[:4].lower()}-{code[4:]}") == api.events(code=code)


def test_without_a_filter_the_whole_ledger_is_read_backwards(api: Api) -> None:
    made = [api.draft() for _ in range(3)]
    newest = api.audit.ListAuditEvents(audit.ListAuditEventsRequest(page_size=3)).events
    assert [event.book_id for event in newest] == [book.book_id for book in made[::-1]]
    since = api.events(start_time=made[1].create_time)
    assert [event.book_id for event in since] == [book.book_id for book in made[1:]]


# --- never altered ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE redemption_audit SET caller = 'nobody'",
        "UPDATE redemption_audit SET metadata = '{}' WHERE type = 1",
        "DELETE FROM redemption_audit",
        "DELETE FROM redemption_audit WHERE type = 16",
        "TRUNCATE redemption_audit",
        "TRUNCATE redemption_audit, coupon_books CASCADE",
        """INSERT INTO redemption_audit SELECT * FROM redemption_audit
        ON CONFLICT (event_id) DO UPDATE SET caller = 'nobody'""",
        """MERGE INTO redemption_audit AS a USING redemption_audit AS b
        ON a.event_id = b.event_id WHEN MATCHED THEN DELETE""",
    ],
)
def test_the_database_refuses_to_alter_the_ledger(
    api: Api, server: ServerThread, story: dict[str, Any], statement: Any
) -> None:
    before = api.events(book_id=story["first"])
    with psycopg.connect(server.database_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            connection.execute(statement)
    assert api.events(book_id=story["first"]) == before
