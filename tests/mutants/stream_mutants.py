"""Mutants of Checkout streams.

Made as those of `mutants`.
"""

from __future__ import annotations

from mutants.mutants import Mutant, changed_source

from coupon_service.rpc import checkout_streams, handler, operations


def roles_of_the_stream() -> Mutant:
    """Whoever may open a stream may do with it what it carries."""
    return changed_source(
        operations,
        "Operations",
        "_carry_out",
        "authenticate(method, rpc)",
        'authenticate("RedemptionService/Checkout", rpc)',
    )


def operations_not_counted() -> Mutant:
    """Only the stream counts against the rate limit."""
    return changed_source(
        operations, "Operations", "_carry_out", "around.limiter.limits(rpc)", "False"
    )


def operations_not_guarded() -> Mutant:
    """Unknown codes over a stream are no guesses."""
    return changed_source(
        handler,
        "RpcHandler",
        "add_registered_method_handlers",
        "guarded_handler.unary_unary",
        "handler.unary_unary",
    )


def operations_cancelled_with_their_stream() -> Mutant:
    """A lost line takes along what came over it."""
    return changed_source(
        checkout_streams,
        "CheckoutStreams",
        "serve",
        "await stream.serve()",
        "try: await stream.serve()\n"
        "        finally: [it.cancel() for it in self._operations._tasks]",
    )


def streams_read_without_a_bound() -> Mutant:
    """A stream is read however much of it is in flight."""
    return changed_source(checkout_streams, "_Stream", "_read", ">= operations_max", ">= 1_000_000")


def results_left_behind() -> Mutant:
    """A stream that ends does not wait for the results of what it has read."""
    return changed_source(
        checkout_streams, "_Stream", "serve", "while self._open and", "while 0 and"
    )
