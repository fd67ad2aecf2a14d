"""What has to catch the mutants of what is kept of refused attempts."""

from __future__ import annotations

from typing import Any

import psycopg
from mutants.harness import Stack
from mutants.rpc_harness import server
from support.calls import reason_name, tried
from support.service import new_codes, redemptions, unique
from support.token_clients import caller
from support.token_issuers import ASKED_FOR


def guess_of_a_code(it: Stack) -> None:
    """What somebody typed is found by who knows it, and nobody can read it."""
    (guess,) = new_codes(1)
    with server(it, **ASKED_FOR) as running, caller(running.address, "redeemer") as till:
        assert tried(lambda: till.redeem(guess, "ann")) == "CODE_NOT_FOUND"
    # It has stopped, so that all is written.
    assert len(_listed(it, code=guess)) == 1
    with psycopg.connect(it.database_url) as connection:
        rows = connection.execute("SELECT refusal::text FROM coupon_refusals AS refusal").fetchall()
    assert not [row for (row,) in rows if guess in row]


def attempts_of_two_businesses(it: Stack) -> None:
    """A business sees what was tried on its own codes alone."""
    mine, theirs = unique("business"), unique("business")
    (code,) = new_codes(1)
    it.apis[0].book(codes=[code], business_id=mine)
    it.apis[0].disable(code, business_id=mine)
    with server(it, **ASKED_FOR) as running, caller(running.address, "redeemer") as till:
        assert tried(lambda: till.redeem(code, "ann", business_id=mine)) == "CODE_DISABLED"
    with server(it, **ASKED_FOR) as running:
        for business, count in ((mine, 1), (theirs, 0)):
            with caller(running.address, "auditor", business=business) as support:
                answer = support.redemptions.ListRefusals(redemptions.ListRefusalsRequest())
                assert len(answer.refusals) == count


def code_that_an_end_user_does_not_see(it: Stack) -> None:
    """Support finds why a code did not work that its user was told nothing of."""
    business, user = unique("business"), unique("user")
    (code,) = new_codes(1)
    it.apis[0].book(codes=[code], business_id=business)
    it.apis[0].disable(code, business_id=business)
    with (
        server(it, **ASKED_FOR) as running,
        caller(running.address, "self", sub=user, business=business) as app,
    ):
        assert tried(lambda: app.redeem(code, user)) == "CODE_NOT_FOUND"
    (found,) = _listed(it, user_id=user)
    assert found.code == code
    assert "CODE_DISABLED" in map(reason_name, found.untold)


def _listed(it: Stack, **filters: Any) -> list[redemptions.Refusal]:
    request = redemptions.ListRefusalsRequest(**filters)
    return list(it.apis[0].redemptions.ListRefusals(request).refusals)
