"""Mutants of rpc: paths, connections, page tokens and callers.

Made as those of `mutants`.
"""

# pyright: reportPrivateUsage=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from typing import Any
from unittest import mock

from mutants.mutants import Mutant, changed_source

from coupon_service.rpc import paging, public_methods, serving_loop
from coupon_service.rpc.connections import Connections
from coupon_service.rpc.context import ANONYMOUS, RequestContext
from coupon_service.rpc.convert import fields
from coupon_service.rpc.handler import RpcHandler
from coupon_service.security import bearer_tokens, keys
from coupon_service.security.key_fetcher import KeyFetcher
from coupon_service.telemetry import metrics_http

# --- paths and connections ------------------------------------------------------------------------


def serving_loop_not_replaced() -> Mutant:
    """When a path has ended gRPC's serving loop, nobody takes its calls."""

    async def nobody(_: object) -> None:
        pass

    return mock.patch.object(serving_loop.ServingLoop, "_take_over", nobody)


def server_stopped_with_its_loop() -> Mutant:
    """gRPC stops its server when its loop has ended."""
    return changed_source(
        serving_loop, "ServingLoop", "_first_ended", "task.cancel()", "task.get_name()"
    )


def watches_without_a_bound() -> Mutant:
    """One connection may watch the health of as many services as it likes."""
    return mock.patch.object(public_methods, "STREAMS_OF_CONNECTION_MAX", 1_000_000)


def watches_counted_as_calls() -> Mutant:
    """Whoever watches the health of a service takes the place of a call."""
    real = RpcHandler.service

    def service(self: RpcHandler, handler_call_details: Any) -> Any:
        task = asyncio.current_task()
        if handler_call_details.method in self._public_handlers and task is not None:
            self._calls.count += 1
            task.add_done_callback(partial(self._closed, RequestContext()))
        return real(self, handler_call_details)

    return mock.patch.object(RpcHandler, "service", service)


def connections_without_a_call_kept() -> Mutant:
    """When there are as many connections as may be, it is newcomers who are sent away."""
    return mock.patch.object(Connections, "make_room", return_value=0)


def long_calls_forgotten() -> Mutant:
    """A connection whose call takes long counts as one without a call."""
    return mock.patch.object(Connections, "holding", lambda _, work: work)


# --- page tokens ----------------------------------------------------------------------------------


def page_tokens_without_a_key() -> Mutant:
    """Everybody can make the MAC of a page token."""
    real = paging._seal
    return mock.patch.object(
        paging, "_seal", lambda request, payload, _: real(request, payload, b"")
    )


def page_tokens_for_any_query() -> Mutant:
    """A page token is good for every request of its kind."""
    real = paging._seal
    return mock.patch.object(
        paging, "_seal", lambda request, payload, secret: real(type(request)(), payload, secret)
    )


def positions_of_any_shape() -> Mutant:
    """What a good token says is a position, whichever version made it."""
    return mock.patch.object(paging, "_position", lambda _, payload: tuple(json.loads(payload)))


# --- callers --------------------------------------------------------------------------------------


def anonymous_by_name() -> Mutant:
    """Who is called anonymous has no token."""
    nameless = property(lambda self: self.caller == ANONYMOUS)
    return mock.patch.object(RequestContext, "anonymous", nameless)


def padded_tokens_taken() -> Mutant:
    """A token has several spellings."""
    return mock.patch.object(bearer_tokens, "COMPACT_FORM", re.compile(r"[\w.=-]+", re.ASCII))


def invisible_names_taken() -> Mutant:
    """A user is somebody whose name nobody can see."""
    return changed_source(fields, "Fields", "text", "not any(map(_is_visible, value))", "False")


# --- published keys -------------------------------------------------------------------------------


def new_keys_not_awaited() -> Mutant:
    """A token whose key is not known yet is refused at once."""
    return mock.patch.object(KeyFetcher, "full", new=True)


def stale_keys_dropped() -> Mutant:
    """Keys that cannot be fetched again are not good any more."""
    real = bearer_tokens.Tokens.fetch

    def fetch(self: bearer_tokens.Tokens) -> bool:
        fetched = real(self)
        if not fetched:
            self._change(fetched={})
        return fetched

    return mock.patch.object(bearer_tokens.Tokens, "fetch", fetch)


def published_secrets_used() -> Mutant:
    """A secret that everybody can read verifies tokens."""
    real = keys._usable

    def usable(*arguments: Any, published: bool = False) -> keys.Keys:
        return real(*arguments)

    return mock.patch.object(keys, "_usable", usable)


# --- the metrics port -----------------------------------------------------------------------------


def bad_targets_not_answered() -> Mutant:
    """Who asks the metrics port for what is no URL gets no answer."""
    right = 'return self.answer(400, "the request target is no URL")'
    return changed_source(metrics_http, "_Handler", "do_GET", right, "raise")
