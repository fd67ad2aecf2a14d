"""Linearizability: whether concurrent answers could have been given one after the other.

The search of Wing and Gong ("Testing and verifying concurrent objects", 1993), with a cache of
visited pairs of operations and state (Lowe, "Testing for linearizability", 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

CallT = TypeVar("CallT")
AnswerT = TypeVar("AnswerT")
StateT = TypeVar("StateT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Operation(Generic[CallT, AnswerT]):
    """One call and its answer, with times in seconds of one clock.

    Without an answer the outcome is unknown: it took effect at any time after `invoked_s`, or takes
    effect later, or never.
    """

    call: CallT
    answer: AnswerT | None
    invoked_s: float
    returned_s: float = math.inf


def longest_order(
    operations: Sequence[Operation[CallT, AnswerT]],
    state: StateT,
    after: Callable[[StateT, Operation[CallT, AnswerT]], StateT | None],
) -> list[Operation[CallT, AnswerT]]:
    """The longest order in which the operations may have happened.

    `after(state, operation)` is the state after the operation, or None when its answer is wrong in
    this state; for an unknown outcome it is the state if it took effect. An operation that returned
    before another was invoked precedes it. The order has every answered operation exactly when the
    history is linearizable (`is_whole`).
    """
    answered = sum(1 << i for i, it in enumerate(operations) if it.answer is not None)
    before = [
        sum(1 << j for j, other in enumerate(operations) if other.returned_s < it.invoked_s)
        for it in operations
    ]
    # The operation that returned first most likely took effect first.
    tried = sorted(range(len(operations)), key=lambda i: operations[i].returned_s, reverse=True)
    best: tuple[int, ...] = ()
    most = -1
    visited: set[tuple[int, StateT]] = set()
    stack: list[tuple[int, StateT, tuple[int, ...]]] = [(0, state, ())]
    while stack:
        done, now, order = stack.pop()
        if (done, now) in visited:
            continue
        visited.add((done, now))
        if (done & answered).bit_count() > most:
            best, most = order, (done & answered).bit_count()
            if done & answered == answered:
                break
        for i in tried:
            if done >> i & 1 or before[i] & ~done:
                continue
            then = after(now, operations[i])
            if then is None or (operations[i].answer is None and then == now):
                continue
            stack.append((done | 1 << i, then, (*order, i)))
    return [operations[i] for i in best]


def is_whole(
    order: Sequence[Operation[CallT, AnswerT]], operations: Sequence[Operation[CallT, AnswerT]]
) -> bool:
    """Whether an order has every answered operation."""
    return sum(it.answer is not None for it in order) == sum(
        it.answer is not None for it in operations
    )
