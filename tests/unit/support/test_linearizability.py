"""The checker of histories: it accepts what one caller after the other could have seen, only."""

from __future__ import annotations

import math
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.linearizability import Operation, is_whole, longest_order

Call = tuple[str, int]
"""A register of one number: ("write", n), ("read", 0), or ("add", n), which answers the sum."""

History = list[Operation[Call, int]]


def after(state: int, operation: Operation[Call, int]) -> int | None:
    """A register that one caller at a time uses."""
    kind, value = operation.call
    then = {"write": value, "read": state, "add": state + value}[kind]
    answer = 0 if kind == "write" else then
    return then if operation.answer in (None, answer) else None


def linearizable(history: History) -> bool:
    return is_whole(longest_order(history, 0, after), history)


def op(
    kind: str, value: int, answer: int | None, invoked: float, returned: float = math.inf
) -> Operation[Call, int]:
    return Operation((kind, value), answer, invoked, returned)


def read(answer: int, invoked: float, returned: float) -> Operation[Call, int]:
    return op("read", 0, answer, invoked, returned)


def test_one_caller_sees_what_was_done_before() -> None:
    assert linearizable([op("write", 3, 0, 0, 1), read(3, 2, 3), op("add", 2, 5, 4, 5)])
    assert not linearizable([op("write", 3, 0, 0, 1), read(0, 2, 3)])


def test_what_happens_at_the_same_time_may_come_in_any_order() -> None:
    write = op("write", 3, 0, 0, 10)
    assert linearizable([write, read(0, 1, 2), read(3, 3, 4)])
    assert linearizable([write, read(3, 1, 2), read(3, 3, 4)])


def test_what_was_seen_once_is_not_unseen() -> None:
    assert not linearizable([op("write", 3, 0, 0, 10), read(3, 1, 2), read(0, 3, 4)])


def test_a_lost_update_is_found() -> None:
    adds = [op("add", 1, 1, 0, 10), op("add", 1, 1, 0, 10)]
    assert not linearizable(adds)
    assert linearizable([adds[0], op("add", 1, 2, 0, 10)])


def test_an_open_outcome_may_have_taken_effect_now_later_or_never() -> None:
    lost = op("add", 1, None, 0)
    assert linearizable([lost, read(0, 1, 2)])
    assert linearizable([lost, read(1, 1, 2)])
    assert linearizable([lost, read(0, 1, 2), read(1, 3, 4)])
    assert not linearizable([lost, read(1, 1, 2), read(0, 3, 4)])
    assert not linearizable([lost, read(2, 1, 2)])


def test_an_open_outcome_has_no_effect_before_it_was_asked_for() -> None:
    assert not linearizable([read(1, 0, 1), op("add", 1, None, 2)])


def test_the_order_that_was_found_shows_where_it_ends() -> None:
    history = [op("write", 3, 0, 0, 1), read(7, 2, 3), read(3, 4, 5)]
    order = longest_order(history, 0, after)
    assert order == history[:1]
    assert not is_whole(order, history)


def test_twenty_operations_at_once_are_no_matter() -> None:
    adds = [op("add", 1, n, 0, 100) for n in range(1, 21)]
    assert linearizable(adds)
    assert not linearizable([*adds[:-1], op("add", 1, 19, 0, 100)])


def lasting(
    kind: str, value: int, answer: int | None, begin: int, lasts: int
) -> Operation[Call, int]:
    return op(kind, value, answer, begin, math.inf if answer is None else begin + lasts)


TIMES = st.integers(0, 8)
OPERATIONS = st.builds(
    lasting,
    st.sampled_from(["write", "read", "add"]),
    st.integers(0, 2),
    st.none() | st.integers(0, 4),
    TIMES,
    TIMES,
)


def by_brute_force(history: History) -> bool:
    """Every order of every selection of the open ones."""
    answered = [it for it in history if it.answer is not None]
    lost = [it for it in history if it.answer is None]
    return any(
        _holds(order)
        for chosen in range(1 << len(lost))
        for order in permutations(
            [*answered, *(it for i, it in enumerate(lost) if chosen >> i & 1)]
        )
    )


def _holds(order: tuple[Operation[Call, int], ...]) -> bool:
    state: int | None = 0
    for i, operation in enumerate(order):
        if any(later.returned_s < operation.invoked_s for later in order[i + 1 :]):
            return False
        state = after(state, operation)
        if state is None:
            return False
    return True


@given(st.lists(OPERATIONS, max_size=5))
@settings(max_examples=500)
def test_the_search_agrees_with_trying_every_order(history: History) -> None:
    assert linearizable(history) == by_brute_force(history)
