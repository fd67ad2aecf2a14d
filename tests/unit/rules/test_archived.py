"""Attempts that are in archives, and redemptions of users who were erased meanwhile."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from unit.rules.commands import call, recorded, redeem, rollback
from unit.rules.world import book

from coupon_service.errors import Archived, Contention
from coupon_service.model import EventType, State
from coupon_service.model.scopes import scoped_book_id
from coupon_service.rules.archived import archived_attempt
from coupon_service.rules.code_lookup import as_attempted
from coupon_service.rules.erasures import erasure_refusal

FILE = "spring.archive"


def test_an_attempt_is_archived_by_whichever_id_it_was_carried_out() -> None:
    command, earlier = redeem(by=call("r1")), uuid4()
    assert archived_attempt(command, State(archived={uuid4(): FILE})) is None
    assert type(archived_attempt(command, State(archived={command.event_id: FILE}))) is Archived
    spelled = replace(command, earlier=((earlier, 0),))
    refusal = archived_attempt(spelled, State(archived={earlier: FILE}))
    assert isinstance(refusal, Archived)
    assert refusal.metadata == {"archive": FILE}


def test_an_archived_attempt_keeps_its_id_whoever_has_the_code_now() -> None:
    later = book(scoped_book_id(uuid4(), "business"))
    command = redeem(by=call("r1"))
    state = State(books={later.book_id: later}, archived={command.event_id: FILE})
    assert as_attempted([command], state) == [command]


def test_a_rollback_whose_user_was_erased_meanwhile_is_tried_again() -> None:
    redemption = recorded(redeem(by=call("r1")), EventType.REDEEMED)
    erased = replace(redemption, user_id="erased-" + "a" * 32)
    state = State(events={redemption.event_id: erased})
    assert type(erasure_refusal(rollback(redemption), state)) is Contention
