"""How new an answer is, for whoever has to know."""

from __future__ import annotations

from typing import Final

from coupon_service.rpc.messages import Context

LAG_KEY: Final = "coupon-replica-lag-ms"
"""In the trailing metadata of an answer that a read replica gave: it has all that was committed so
many milliseconds before the call."""


def tell_lag(context: Context, lag_ms: int | None) -> None:
    """Says that a read replica has answered, with this lag; nothing for None."""
    if lag_ms is not None:
        context.set_trailing_metadata(((LAG_KEY, str(lag_ms)),))
