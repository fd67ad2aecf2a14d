"""Who opens calls without a message has its messages read by the handler."""

from __future__ import annotations

from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.unread_calls import SUSPECTED_S, SUSPECTS_MAX, UnreadCalls


def call(caller: str = "shop", business_id: str = "") -> RequestContext:
    """A call of this caller."""
    return RequestContext(caller=caller, business_id=business_id)


def left(calls: UnreadCalls, caller: str = "shop") -> None:
    """A call of the caller ends without a message."""
    unread = call(caller)
    assert calls.admits(unread)
    calls.ended(unread)


def test_only_so_many_are_waited_for_at_a_time() -> None:
    calls = UnreadCalls(2)
    first, second = call(), call()
    assert [calls.admits(it) for it in (first, second, call())] == [True, True, False]
    calls.read(first)
    assert calls.admits(call())


def test_a_call_that_ends_with_its_message_makes_nobody_suspect() -> None:
    calls = UnreadCalls(2)
    for _ in range(5):
        one = call()
        assert calls.admits(one)
        calls.read(one)
        calls.ended(one)


def test_who_leaves_a_call_without_a_message_is_suspect_for_a_while() -> None:
    now_s = 0.0
    calls = UnreadCalls(2, lambda: now_s)
    left(calls)
    assert not calls.admits(call())
    for other in (call("another"), call(business_id="acme")):
        assert calls.admits(other)
        calls.read(other)
    now_s = SUSPECTED_S
    left(calls)
    assert not calls.admits(call())


def test_so_many_suspects_are_remembered() -> None:
    calls = UnreadCalls(2)
    for number in range(SUSPECTS_MAX + 1):
        left(calls, f"caller {number}")
    assert calls.admits(call("caller 0"))
    assert not calls.admits(call("caller 1"))
