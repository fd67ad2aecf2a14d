"""Whether a Redis is what the service needs: writable, with scripts, and allowed to the user."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from coupon_service.leases.indexes import remove
from coupon_service.leases.results import LeaseKey
from coupon_service.leases.scripts import LOCKING_BOOKS, LeaseScripts, book_index, index_member
from coupon_service.redis_client.exchange import RedisCommand
from coupon_service.redis_client.pipelines import Pipelines
from coupon_service.telemetry.readiness import REDIS_PROBLEMS, Readiness

THOROUGH_EVERY_S: Final = 10.0
"""Between two thorough checks of a Redis that will do. In between it is only written to."""

# Everything that a check writes ends by itself after that.
_TTL_MS: Final = 1_000

_MEANINGS: Final = (
    ("MOVED ", Readiness.REDIS_CLUSTER_NODE),
    ("ASK ", Readiness.REDIS_CLUSTER_NODE),
    ("CLUSTERDOWN", Readiness.REDIS_CLUSTER_NODE),
    ("NOPERM", Readiness.REDIS_NO_PRIVILEGE),
    ("user executing the script can't", Readiness.REDIS_NO_PRIVILEGE),  # Redis 6
    ("READONLY", Readiness.REDIS_REPLICA),
    ("OOM", Readiness.REDIS_NOT_WRITABLE),
    ("MISCONF", Readiness.REDIS_NOT_WRITABLE),
    ("NOREPLICAS", Readiness.REDIS_NOT_WRITABLE),
    ("unknown command", Readiness.REDIS_NO_SCRIPTS),
)
"""What a refusal means, by a part of it: a refusal within a script has the script's name before."""

_ADVICE: Final[Mapping[Readiness, str]] = {
    Readiness.REDIS_CLUSTER_NODE: "It is a node of a Redis Cluster.",
    Readiness.REDIS_SENTINEL: "It is a Sentinel, which holds no data.",
    Readiness.REDIS_REPLICA: "It is a replica: the URL has to lead to the master.",
    Readiness.REDIS_NO_SCRIPTS: "It runs no scripts, or lacks another command.",
    Readiness.REDIS_NO_PRIVILEGE: "Its user may not do all that is needed: see the ACL in the"
    " documentation.",
    Readiness.REDIS_NOT_WRITABLE: "It accepts no writes.",
    Readiness.REDIS_REFUSES: "It refuses what the service needs.",
    Readiness.REDIS_MAY_EVICT: "It may evict locks before they end: expected maxmemory-policy"
    " noeviction.",
}


class ServerCheck:
    """Checks one Redis. Everything that it writes is under keys of its own."""

    def __init__(self, redis: Pipelines, scripts: LeaseScripts) -> None:
        self._redis = redis
        self._scripts = scripts
        # No code has a space, and no other process this number.
        code = f"a check {secrets.token_hex(8)}"
        self._key = LeaseKey(code, code, code, code)
        self._thorough_s = 0.0
        self._found: dict[Readiness, str] = {}

    async def findings(self) -> Mapping[Readiness, str]:
        """What is not as it should be, each in a sentence: problems and warnings.

        A Redis is checked thoroughly when it is connected to, after each failure, and now and then.
        Raises LocksUnavailable when it cannot be reached.
        """
        now_s = time.monotonic()
        if now_s < self._thorough_s:
            replies = await self._redis.replies(self._write(), ("PING",))
            if not any(isinstance(it, Exception) for it in replies):
                return self._found
        self._thorough_s = 0.0
        info, *replies = await self._redis.replies(("INFO",), *self._needed())
        self._found = found_in(info, replies)
        if not self._found.keys() & REDIS_PROBLEMS.keys():
            self._thorough_s = now_s + THOROUGH_EVERY_S
        return self._found

    def _write(self) -> RedisCommand:
        return self._scripts.index(book_index(self._key.book_id), "", ttl_ms=_TTL_MS)

    def _needed(self) -> Iterable[RedisCommand]:
        """Every script and every command that the service sends, the rate limits' too."""
        key, scripts = self._key, self._scripts
        code, index = key.code, book_index(key.book_id)
        entry = scripts.index(index, index_member(key), ttl_ms=_TTL_MS, entries_max=9)
        window = f"coupon:{code}"
        return chain(
            (
                ("PING",),
                self._write(),
                entry,
                scripts.acquire(key, ttl_ms=_TTL_MS, grace_ms=0),
                scripts.acquire_transient(code, key.lock_id, key.user_id, _TTL_MS),
                scripts.peek(code, key.user_id, key.lock_id),
                scripts.extend(key, expire_ms=1, grace_ms=0),
                scripts.list(index, 0, 0, 1),
                scripts.ended(index, 0, 1),
                ("ZCOUNT", index, 0, 0),
                ("ZREMRANGEBYSCORE", LOCKING_BOOKS, "-inf", 0),
                ("ZRANGE", LOCKING_BOOKS, 0, 0),
                ("INCRBY", window, 1),
                ("EXPIRE", window, 1),
                ("PTTL", window),
            ),
            scripts.release_transient(code, key.lock_id, key.user_id),
            (scripts.release(key, tombstone_until_ms=round(time.time() * 1000) + _TTL_MS),),
            remove((key,)),
        )


def found_in(info: Any, replies: Sequence[Any]) -> dict[Readiness, str]:
    """What the replies to INFO and to all that is needed say.

    A refused INFO says nothing: a Redis that does all that is needed will do.
    """
    facts = _facts(info) if isinstance(info, str) else {}
    found: dict[Readiness, str] = {}
    match facts.get("redis_mode"), facts.get("role"):
        case "sentinel", _:
            found[Readiness.REDIS_SENTINEL] = ""
        case "cluster", _:
            found[Readiness.REDIS_CLUSTER_NODE] = ""
        case _, "slave":
            found[Readiness.REDIS_REPLICA] = ""
        case _:
            refused = next((it for it in replies if isinstance(it, Exception)), None)
            if refused is not None:
                text = f"{getattr(refused, 'status_code', '') or ''} {refused}".strip()
                found[_meaning(text)] = f" It said: {text[:200]}"
    if facts.get("maxmemory_policy", "noeviction") != "noeviction":
        found[Readiness.REDIS_MAY_EVICT] = f" It has {facts['maxmemory_policy']}."
    return {flag: _ADVICE[flag] + said for flag, said in found.items()}


def _meaning(refusal: str) -> Readiness:
    return next((flag for part, flag in _MEANINGS if part in refusal), Readiness.REDIS_REFUSES)


def _facts(info: str) -> dict[str, str]:
    """The lines of a reply to INFO."""
    lines = (line.partition(":") for line in info.splitlines())
    return {name: value for name, colon, value in lines if colon}
