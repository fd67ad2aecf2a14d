"""Whether a Redis is what the service needs: writable, with scripts, and allowed to the user."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

from coupon_service.errors import LocksUnavailable
from coupon_service.leases.indexes import remove
from coupon_service.leases.results import LeaseKey
from coupon_service.leases.scripts import LeaseScripts, book_index, index_member
from coupon_service.redis_client.cluster import Address, ClusterPipelines, NoMasterError
from coupon_service.redis_client.connect import AnyPipelines
from coupon_service.redis_client.exchange import REDIRECTIONS, RedisCommand, unavailable
from coupon_service.redis_client.pipelines import Pipelines
from coupon_service.telemetry.readiness import REDIS_PROBLEMS, Readiness

THOROUGH_EVERY_S: Final = 10.0
"""Between two thorough checks of a Redis that will do. In between it is only written to."""

# Everything that a check writes ends by itself after that.
_TTL_MS: Final = 1_000

FULL_COVERAGE: Final = "cluster-require-full-coverage"

KEY_ATTEMPTS_MAX: Final = 10_000
"""To find a key that a master has; one with a single slot is rare."""

_MEANINGS: Final = (
    ("MOVED ", Readiness.REDIS_CLUSTER_NODE),
    ("ASK ", Readiness.REDIS_CLUSTER_NODE),
    ("CLUSTERDOWN", Readiness.REDIS_CLUSTER_DOWN),
    ("NOPERM", Readiness.REDIS_NO_PRIVILEGE),
    ("user executing the script can't", Readiness.REDIS_NO_PRIVILEGE),  # Redis 6
    ("ACL failure", Readiness.REDIS_NO_PRIVILEGE),  # Redis 7 and Valkey
    ("READONLY", Readiness.REDIS_REPLICA),
    ("OOM", Readiness.REDIS_NOT_WRITABLE),
    ("MISCONF", Readiness.REDIS_NOT_WRITABLE),
    ("NOREPLICAS", Readiness.REDIS_NOT_WRITABLE),
    ("unknown command", Readiness.REDIS_NO_SCRIPTS),
)
"""What a refusal means, by a part of it: a refusal within a script has the script's name before."""

_ADVICE: Final[Mapping[Readiness, str]] = {
    Readiness.REDIS_CLUSTER_NODE: "It is a node of a Redis Cluster: its URL is redis+cluster://….",
    Readiness.REDIS_CLUSTER_DOWN: "The cluster does not serve all slots.",
    Readiness.REDIS_FULL_COVERAGE: f"Without one of its masters the cluster stops as a whole:"
    f" expected {FULL_COVERAGE} no.",
    Readiness.REDIS_SENTINEL: "It is a Sentinel, which holds no locks: its URL is redis+sentinel://…/name.",
    Readiness.REDIS_REPLICA: "It is a replica: the URL has to lead to the master.",
    Readiness.REDIS_NO_SCRIPTS: "It runs no scripts, or lacks another command.",
    Readiness.REDIS_NO_PRIVILEGE: "Its user may not do all that is needed: see the ACL in the"
    " documentation.",
    Readiness.REDIS_NOT_WRITABLE: "It accepts no writes.",
    Readiness.REDIS_REFUSES: "It refuses what the service needs.",
    Readiness.REDIS_MAY_EVICT: "It may evict locks before they end: expected maxmemory-policy"
    " noeviction.",
}


class RedisCheck:
    """Checks the Redis of the service, of a cluster all masters."""

    def __init__(self, redis: AnyPipelines, scripts: LeaseScripts) -> None:
        self._redis = redis
        self._scripts = scripts
        self._servers: dict[Address | None, ServerCheck] = {}

    async def findings(self) -> Mapping[Readiness, str]:
        """What is not as it should be, each in a sentence: problems and warnings.

        A server is checked thoroughly when it is connected to, after each failure, and now and
        then. Raises LocksUnavailable when none can be reached.
        """
        if isinstance(self._redis, Pipelines):
            if not self._servers:
                self._servers[None] = ServerCheck(self._redis, self._scripts, lambda _: True)
            return await self._servers[None].findings()
        return await self._of_cluster(self._redis)

    async def _of_cluster(self, cluster: ClusterPipelines) -> Mapping[Readiness, str]:
        masters = await cluster.masters()
        for gone in self._servers.keys() - set(masters):
            del self._servers[gone]
        for each in masters:
            if each not in self._servers:
                here = partial(_is_at, cluster, each)
                self._servers[each] = ServerCheck(cluster.at(each), self._scripts, here, True)
        checks = (self._servers[it].findings() for it in masters)
        results = await asyncio.gather(*checks, return_exceptions=True)
        found: dict[Readiness, str] = {}
        for master, result in zip(masters, results, strict=True):
            for flag, text in _of_master(result).items():
                found[flag] = f"{found.get(flag, '')} {master[0]}:{master[1]}: {text}".strip()
        if all(isinstance(it, LocksUnavailable) for it in results):
            raise unavailable(NoMasterError(found.get(Readiness.REDIS_NODE_DOWN)))
        return found


def _of_master(result: Mapping[Readiness, str] | BaseException) -> Mapping[Readiness, str]:
    """The findings of one master of several."""
    if isinstance(result, LocksUnavailable):
        return {Readiness.REDIS_NODE_DOWN: f"It is unreachable: {result.__cause__}."}
    if isinstance(result, BaseException):
        raise result
    return result


def _is_at(cluster: ClusterPipelines, master: Address, key: str) -> bool:
    return cluster.master_of(key) == master


class ServerCheck:
    """Checks one server. Everything that it writes is under keys of its own."""

    def __init__(
        self,
        redis: Pipelines,
        scripts: LeaseScripts,
        is_here: Callable[[str], bool],
        in_cluster: bool = False,
    ) -> None:
        """`is_here`: whether the server has a key."""
        self._redis = redis
        self._scripts = scripts
        self._is_here = is_here
        self._in_cluster = in_cluster
        self._key = self._new_key()
        self._thorough_s = 0.0
        self._found: dict[Readiness, str] = {}

    async def findings(self) -> Mapping[Readiness, str]:
        """As of `RedisCheck`. Raises LocksUnavailable when it cannot be reached."""
        now_s = time.monotonic()
        if now_s < self._thorough_s:
            replies = await self._redis.replies(self._write(), ("PING",))
            if not any(isinstance(it, Exception) for it in replies):
                return self._found
        self._thorough_s = 0.0
        self._key = self._new_key()
        info, coverage, *replies = await self._redis.replies(
            ("INFO",),
            ("CONFIG", "GET", FULL_COVERAGE) if self._in_cluster else ("PING",),
            *self._needed(),
        )
        self._found = found_in(info, replies, coverage if self._in_cluster else None)
        if not self._found.keys() & REDIS_PROBLEMS.keys():
            self._thorough_s = now_s + THOROUGH_EVERY_S
        return self._found

    def _new_key(self) -> LeaseKey:
        """Of a lock that nobody else knows: no code has a space, and no other process this one."""
        code = ""
        for _ in range(KEY_ATTEMPTS_MAX):
            code = f"a check {secrets.token_hex(8)}"
            if self._is_here(book_index(code)):
                break
        return LeaseKey(code, code, code, code)

    def _write(self) -> RedisCommand:
        # No script: within one Redis 6 does not say that it is full once something was written.
        return ("SET", f"coupon:{{{self._key.code}}}:written", "", "PX", _TTL_MS)

    def _needed(self) -> Iterable[RedisCommand]:
        """Every script and every command that the service sends, the rate limits' too."""
        key, scripts = self._key, self._scripts
        code, index = key.code, book_index(key.book_id)
        entry = scripts.index(index, index_member(key), ttl_ms=_TTL_MS, entries_max=9)
        window = f"coupon:{{{code}}}:window"
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
                ("ZREMRANGEBYSCORE", index, "-inf", 0),
                ("ZRANGE", index, 0, 0),
                ("INCRBY", window, 1),
                ("EXPIRE", window, 1),
                ("PTTL", window),
            ),
            scripts.release_transient(code, key.lock_id, key.user_id),
            (scripts.release(key, tombstone_until_ms=round(time.time() * 1000) + _TTL_MS),),
            (it.command for it in remove((key,))),
        )


def found_in(info: Any, replies: Sequence[Any], full_coverage: Any = None) -> dict[Readiness, str]:
    """What the replies to INFO and to all that is needed say, and of a node of the cluster that is
    to be used what it says of its FULL_COVERAGE.

    A refused INFO says nothing: a Redis that does all that is needed will do.
    """
    facts = _facts(info) if isinstance(info, str) else {}
    found: dict[Readiness, str] = {}
    mode = facts.get("redis_mode") or facts.get("server_mode")  # Valkey's
    if full_coverage is not None:
        mode = ""
    match mode, facts.get("role"):
        case "sentinel", _:
            found[Readiness.REDIS_SENTINEL] = ""
        case "cluster", _:
            found[Readiness.REDIS_CLUSTER_NODE] = ""
        case _, "slave":
            found[Readiness.REDIS_REPLICA] = ""
        case _:
            ignored = REDIRECTIONS if full_coverage is not None else ()
            errors = (it for it in replies if isinstance(it, Exception))
            refused = next((it for it in errors if not isinstance(it, ignored)), None)
            if refused is not None:
                text = f"{getattr(refused, 'status_code', '') or ''} {refused}".strip()
                found[_meaning(text)] = f" It said: {text[:200]}"
    if facts.get("maxmemory_policy", "noeviction") != "noeviction":
        found[Readiness.REDIS_MAY_EVICT] = f" It has {facts['maxmemory_policy']}."
    if full_coverage == [FULL_COVERAGE, "yes"]:
        found[Readiness.REDIS_FULL_COVERAGE] = ""
    return {flag: _ADVICE[flag] + said for flag, said in found.items()}


def _meaning(refusal: str) -> Readiness:
    return next((flag for part, flag in _MEANINGS if part in refusal), Readiness.REDIS_REFUSES)


def _facts(info: str) -> dict[str, str]:
    """The lines of a reply to INFO."""
    lines = (line.partition(":") for line in info.splitlines())
    return {name: value for name, colon, value in lines if colon}
