"""Carries the ledger of the coupon service to a Redis Stream.

    python ledger_to_redis.py coupons:50051 redis://localhost/1

An entry for each event, in order. The token is kept in the transaction of the entries, so that each
is there once as long as Redis loses nothing; after that they come again: at least once.
"""

import sys

from google.protobuf.json_format import MessageToJson
from redis import Redis

from coupon_service.client import CouponClient

STREAM, TOKEN = "{coupon-ledger}", "{coupon-ledger}:token"


def carry(client: CouponClient, redis: Redis, *, stop_at_end: bool = False) -> None:
    """Carries events for as long as there are any; the client goes on after breaks."""
    kept = redis.get(TOKEN)
    token = kept.decode() if isinstance(kept, bytes) else ""
    for message in client.watch_audit_events(resume_token=token, stop_at_end=stop_at_end):
        with redis.pipeline(transaction=True) as entries:
            for event in message.events:
                fields = {"event_id": event.event_id, "event": MessageToJson(event, indent=None)}
                entries.xadd(STREAM, fields)
            entries.set(TOKEN, message.resume_token)
            entries.execute()


if __name__ == "__main__":
    with CouponClient(sys.argv[1]) as client, Redis.from_url(sys.argv[2]) as redis:
        carry(client, redis)
