"""The windows in which a user is counted, for when the user is erased. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coupon_service.ratelimit.callers import CallerLimits, read_limits, user_identity
from coupon_service.ratelimit.limiter import RateClass


def keys_of_user(
    user_id: str, businesses: Iterable[str], calls: CallerLimits | None, guesses: CallerLimits
) -> Iterator[str]:
    """The keys of the windows of a user of these businesses, or of none that is known.

    `calls`, `guesses`: the limits.
    """
    for business_id in {"", *businesses}:
        name = user_identity(business_id, user_id)
        for item in read_limits(guesses.end_users):
            yield item.key_for("guesses", name)
        for item in read_limits(calls.end_users) if calls is not None else ():
            for each in RateClass:
                yield item.key_for("calls", f"{each}/{name}")
