"""Events of the ledger: read and put into the state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import Command, State, bucket_of_event
from coupon_service.model.codes import bucket_of
from coupon_service.store.arrays import int_array, uuid_array
from coupon_service.store.events import SELECT_LOCK_EVENTS
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import EVENTS, event_from_row

SELECT_EVENTS: Final[LiteralString] = f"""
SELECT {EVENTS.selected}
FROM unnest(%s::uuid[], %s::smallint[]) AS wanted (event_id, bucket)
JOIN redemption_audit USING (event_id, bucket)
"""


def select_events(pipeline: Pipeline, events: Iterable[UUID]) -> Rows:
    """Adds what reads events by their ids."""
    events = list(events)
    parameters = uuid_array(events), int_array(map(bucket_of_event, events))
    return pipeline.add(SELECT_EVENTS, parameters)


# The row of a random assignment is in the bucket of the code that was chosen.
SELECT_RANDOM_EVENTS: Final[LiteralString] = f"""
SELECT {EVENTS.selected} FROM redemption_audit WHERE event_id = ANY(%s::uuid[])
"""


def select_random_events(pipeline: Pipeline, events: Iterable[UUID]) -> Rows:
    """Adds what reads random assignments by their ids, in all buckets."""
    return pipeline.add(SELECT_RANDOM_EVENTS, (uuid_array(events),))


def select_lock_events(pipeline: Pipeline, lock_ids: Mapping[UUID, str]) -> Rows:
    """Adds what reads the events of locks, of which it takes the codes."""
    parameters = uuid_array(lock_ids), int_array(map(bucket_of, lock_ids.values()))
    return pipeline.add(SELECT_LOCK_EVENTS, parameters)


def put_events(rows: Iterable[TupleRow], state: State) -> None:
    """Puts events into the state."""
    for row in rows:
        event = event_from_row(row)
        state.events[event.event_id] = event


def put_earlier(commands: Iterable[Command], state: State) -> None:
    """Gives rows that were written under another spelling of their ids to the commands that they
    are of."""
    for command in commands:
        for attempt, parameters in command.earlier:
            recorded = state.events.get(attempt)
            if recorded is not None and recorded.fingerprint == parameters:
                recorded = replace(recorded, fingerprint=command.fingerprint)
                state.events[command.event_id] = recorded
            elif recorded is not None:
                state.events.setdefault(command.event_id, recorded)


def put_lock_events(rows: Iterable[TupleRow], state: State) -> None:
    """Puts the events of locks that are not there yet into the state."""
    known = frozenset(state.lock_events)
    for row in rows:
        event = event_from_row(row)
        if event.lock_id is not None and event.lock_id not in known:
            others = state.lock_events.get(event.lock_id, ())
            state.lock_events[event.lock_id] = (*others, event)
