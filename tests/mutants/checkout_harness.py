"""What has to catch the mutants that a few calls show, one after the other."""

from __future__ import annotations

from functools import partial
from unicodedata import normalize
from uuid import uuid4

from model.clock import identity
from mutants.harness import UNLIMITED, Stack
from support.calls import locking_code, tried
from support.service import Api, books, euros, new_codes


def code_that_is_used_up(it: Stack) -> None:
    """A code has one use, if its book does not say otherwise."""
    code = it.apis[0].code()
    found = [tried(partial(api.redeem, code, "user")) for api in it.apis]
    assert found == ["OK", "CODE_ALREADY_REDEEMED"], found
    it.conserved()


def lock_of_another(it: Stack) -> None:
    """Who locks the last use of a code keeps others out, with a token that nobody can make."""
    api = it.apis[0]
    code = locking_code(api)
    token = api.lock(code, "user").lock_token
    assert tried(lambda: api.lock(code, "another")) == "CODE_LOCKED"
    forged = f"{token[:-2]}{'aa' if token[-2:] != 'aa' else 'bb'}"
    reason = tried(lambda: api.redeem(code, "user", lock_token=forged))
    assert reason == "LOCK_TOKEN_MISMATCH", reason
    it.conserved()


def code_with_a_use_left(it: Stack) -> None:
    """A lock that was redeemed keeps nobody from the other use of its code."""
    api = it.apis[0]
    code = locking_code(api, uses=2)
    api.redeem(code, "user", lock_token=api.lock(code, "user").lock_token)
    reason = tried(lambda: api.redeem(code, "another"))
    assert reason == "OK", reason
    it.conserved()


def orders_of_end_users(it: Stack) -> None:
    """An order that an end user names is theirs alone: who names it again is told."""
    api = it.apis[0]
    code = api.code(limits=UNLIMITED)
    found = [_redeemed_by(api, code, user) for user in ("ann", "bob", "ann")]
    assert found == ["OK", "OK", "ORDER_ALREADY_REDEEMED"], found
    it.conserved()


def exclusive_order_of_an_end_user(it: Stack) -> None:
    """It is none of the business, which may have one of the same name."""
    api, names = it.apis[0], new_codes(2)
    api.book(codes=names, order_policy=books.ORDER_POLICY_EXCLUSIVE)
    api.redeem(names[0], "user", order_id="the order", order_amount=euros(1_000))
    reason = _redeemed_by(api, names[1], "user")
    assert reason == "OK", reason
    it.conserved()


def letters_of_two_characters(it: Stack) -> None:
    """A letter is the same however it is spelled, in a code and in the id of an order."""
    api = it.apis[0]
    code = f"\u00c9T\u00c9{uuid4().hex}".upper()
    api.book(codes=[code], limits=UNLIMITED)
    order_id = "order-\u00e9"
    spelled = [(code, order_id), (normalize("NFD", code), normalize("NFD", order_id))]
    found = [tried(lambda it=it: api.redeem(it[0], "user", order_id=it[1])) for it in spelled]
    assert found == ["OK", "ORDER_ALREADY_REDEEMED"], found
    it.conserved()


def upload_that_is_tried_first(it: Stack) -> None:
    """A dry run writes nothing; neither numbers of a spreadsheet nor short codes are taken."""
    api, names = it.apis[0], new_codes(1)
    rows = [*names, "600519.0", names[0][:5]]
    book = api.draft()
    for dry in (True, False):
        (answer,) = api.import_codes(book.book_id, rows, min_code_length=6, validate_only=dry)
        assert (answer.created_count, answer.invalid_count) == (1, 2), answer
        assert api.stats(book.book_id).code_count == (0 if dry else 1), "a dry run"
    it.conserved()


def _redeemed_by(api: Api, code: str, user: str) -> str:
    """What an end user is answered who redeems a code for an order."""
    request = api.redeem_request(code, user, order_id="the order", order_amount=euros(1_000))
    return tried(lambda: api.redemptions.RedeemCode(request, metadata=identity(user, "")))
