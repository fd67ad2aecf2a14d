"""What a client can be told beside where the service is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from coupon_service import __version__

ChannelOptions = tuple[tuple[str, int | str], ...]

ROUND_ROBIN: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How a client calls the service. Times in seconds.

    `timeout_s` is the deadline of a call with all its tries, and `try_timeout_s` that of each of
    them. What may be repeated is repeated after a pause that starts at `backoff_min_s`, doubles up
    to `backoff_max_s`, and varies at random; or after that which the service asks for.

    `retry_budget` bounds repeats while the service is down: the client makes so many at most, and
    five successful calls earn one back. Without budget a call fails with the error of its first
    try.

    `connections` to each address of the target are used in turn. A connection stays with one worker
    of the service, so one alone reaches no more than one. `keepalive_s`: how often an idle
    connection is checked; the service allows 10 s and more.

    `streams`, of AsyncCouponClient: how many Checkout streams carry its validate_code, lock_code,
    extend_lock, unlock_code, redeem_code and rollback_redemption. That costs both sides far less
    than calls do when many are in flight. 0: all are calls.
    """

    timeout_s: float = 10.0
    try_timeout_s: float = 4.0
    backoff_min_s: float = 0.05
    backoff_max_s: float = 2.0
    retry_budget: int = 1_000
    connections: int = 4
    wait_for_ready: bool = True
    keepalive_s: float = 20.0
    streams: int = 0
    channel_options: ChannelOptions = ()

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.timeout_s <= 0 or self.try_timeout_s <= 0:
            raise ValueError("timeout_s and try_timeout_s have to be more than 0 s")
        if self.connections < 1 or self.streams < 0:
            raise ValueError("connections has to be 1 or more, and streams 0 or more")

    def options(self) -> ChannelOptions:
        """The options of a channel. Those of `channel_options` come last, and win."""
        return (
            ("grpc.primary_user_agent", f"coupon-service-client/{__version__}"),
            ("grpc.service_config", ROUND_ROBIN),
            # Otherwise channels with the same target would share a connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),  # not 2 min after the service is back
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),  # of gRPC's other pings, which come before
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            *self.channel_options,
        )
