"""How often a caller may call: fixed windows, counted in Redis for all workers together.

The notation of limits, their keys and the script that counts are those of `limits` (5.8). Its own
Redis storage takes a connection and 100 µs of processor time for each question; the pipelines of
`leases`, in which calls of the same moment ask together, take 20 µs, and have the service's
timeouts. Who has been refused is remembered until the window ends, and costs Redis nothing more.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from time import monotonic
from typing import Final, Protocol, TypeAlias
from urllib.parse import quote, unquote

from limits import RateLimitItem, parse_many
from limits.aio.storage.redis.bridge import RedisBridge

from coupon_service.errors import LocksUnavailable, RateLimited
from coupon_service.redis_client.pipelines import Pipelines, connect

REMEMBERED_MAX: Final = 10_000
"""Callers that a worker remembers as refused, and addresses of which it knows the network."""

PAUSE_S: Final = 1.0
"""How long nobody asks a Redis that did not answer, so that calls do not wait for it."""

IPV6_SITE_BITS: Final = 64
"""What one customer of a network has at least; the rest of the address is theirs to choose."""


class MethodClass(StrEnum):
    """Methods that a caller's calls are counted together for."""

    READS = "reads"
    CHANGES = "changes"
    TILL = "till"


CLASSES: Final[Mapping[MethodClass, Sequence[str]]] = {
    MethodClass.READS: (
        "GetCouponBook",
        "ListCouponBooks",
        "GetCouponBookStats",
        "PreviewCodes",
        "ExportCodes",
        "GetCode",
        "ListCodes",
        "ListUserCoupons",
        "GetLock",
        "ListLocks",
        "GetRedemption",
        "ListRedemptions",
        "ListAuditEvents",
    ),
    MethodClass.CHANGES: (
        "CreateCouponBook",
        "UpdateCouponBook",
        "ActivateCouponBook",
        "PauseCouponBook",
        "CloseCouponBook",
        "GenerateCodes",
        "ImportCodes",
        "DisableCode",
        "EnableCode",
        "AssignCode",
        "AssignRandomCode",
        "BatchAssignRandomCodes",
        "RevokeAssignment",
        "RollbackRedemption",
    ),
    MethodClass.TILL: (
        "ValidateCode",
        "LockCode",
        "ExtendLock",
        "UnlockCode",
        "RedeemCode",
        "BatchRedeemCodes",
    ),
}
"""The one table of which methods are counted together."""

CLASS_OF: Final[Mapping[str, MethodClass]] = {
    method: cls for cls, methods in CLASSES.items() for method in methods
}


class Caller(Protocol):
    """What is known of who calls; `caller` is the subject of a token, unless `anonymous`."""

    caller: str
    business_id: str
    end_user: bool
    peer: str

    @property
    def anonymous(self) -> bool:
        """Whether nobody knows who it is."""
        ...


class LimitObserver(Protocol):
    """Who is told what the limits do."""

    def rate_limit_unchecked(self) -> None:
        """A call passed uncounted, because Redis did not answer."""
        ...


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits by kind of caller, as "100/minute" or "10/second;1000/hour"; "none": no limit.

    `peers` are callers without a token; those on this machine have no limits unless `loopback`.
    """

    end_users: str
    services: str
    peers: str
    loopback: bool = False


class Limits:
    """Whose limits are which."""

    def __init__(self, limits: CallerLimits) -> None:
        self.end_users: Final = read_limits(limits.end_users)
        self._services = read_limits(limits.services)
        self._peers = read_limits(limits.peers)
        self._network = lru_cache(REMEMBERED_MAX)(network_of)
        self._loopback = limits.loopback

    def of(self, caller: Caller) -> Sequence[RateLimitItem]:
        """What this caller is limited to; empty for one without a limit."""
        if caller.end_user:
            return self.end_users
        if not caller.anonymous:
            return self._services
        return () if self.exempt(caller) else self._peers

    def exempt(self, caller: Caller) -> bool:
        """Whether it is somebody on this machine, who tries something out or measures."""
        return caller.anonymous and not self._loopback and not self._network(caller.peer)

    def identity(self, caller: Caller) -> str:
        """Under which name the calls of this caller are counted."""
        if caller.end_user:
            return user_identity(caller.business_id, caller.caller)
        if not caller.anonymous:
            return f"service/{quote(caller.business_id, safe='')}/{caller.caller}"
        return f"peer/{self._network(caller.peer) or 'loopback'}"


def user_identity(business_id: str, user_id: str) -> str:
    """Under which name an end user of a business is counted, whoever speaks for them.

    The users of two businesses may have the same user_id.
    """
    return f"user/{quote(business_id, safe='')}/{user_id}"


def read_limits(text: str) -> tuple[RateLimitItem, ...]:
    """The limits that a setting names. Raises ValueError for what is not one."""
    if text == "none":
        return ()
    items = tuple(parse_many(text))
    if any(item.amount < 1 or item.multiples < 1 for item in items):
        raise ValueError(f"a limit that nobody can keep: {text}")
    return items


def network_of(peer: str) -> str:
    """The network that a peer, as gRPC names it, stands for; empty for this machine.

    An IPv4 address, or the first 64 bits of an IPv6 address.
    """
    kind, _, place = unquote(peer).partition(":")
    host = place.rpartition(":")[0].strip("[]").partition("%")[0]
    if kind not in ("ipv4", "ipv6"):
        return "" if kind.startswith("unix") else peer
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_loopback:
        return ""
    if isinstance(address, IPv6Address):
        bits = 128 - IPV6_SITE_BITS
        return f"{IPv6Address(int(address) >> bits << bits)}/{IPV6_SITE_BITS}"
    return str(address)


Window: TypeAlias = tuple[RateLimitItem, str, int]
"""A limit, the key that it is counted under, and how much is added."""


@dataclass(slots=True)
class _Hits:
    """What is added to a window, and who wants to know the count after their part of it."""

    expiry_s: int
    amount: int = 0
    waiting: list[tuple[asyncio.Future[int], int]] = field(
        default_factory=list[tuple["asyncio.Future[int]", int]]
    )

    def tell(self, total: int) -> None:
        """The count after all of it."""
        for count, amount in self.waiting:
            if not count.done():
                count.set_result(total - self.amount + amount)

    def fail(self, error: LocksUnavailable) -> None:
        """It is not known."""
        for count, _ in self.waiting:
            if not count.done():
                count.set_exception(error)


class Windows:
    """Counts in Redis. A window begins with the first hit and ends after the time of its limit."""

    def __init__(self, url: str, timeout_ms: int) -> None:
        """Connects when it is first used."""
        script = RedisBridge.SCRIPT_INCR_EXPIRE
        self._sha = hashlib.sha1(script, usedforsecurity=False).hexdigest()
        sources = {self._sha: script.decode()}
        self._redis = Pipelines(connect(url, timeout_ms), sources, timeout_ms)

        self._next: dict[str, _Hits] = {}
        self._asking: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Waits for what is on its way and closes the connection."""
        if self._asking is not None:
            await self._asking
        await self._redis.close()

    async def hit(self, windows: Sequence[Window]) -> list[int]:
        """Adds to each window, a limit with a key and how much; the counts after that.

        What several callers add to a window at the same time goes to Redis as one number, and each
        has the count that it would have had alone. Raises LocksUnavailable: Redis did not answer in
        time. It may have counted.
        """
        counts = [self._join(*window) for window in windows]
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        try:
            return [await count for count in counts]
        finally:
            for count in counts:
                count.cancel()  # nobody asks for those after one that failed

    def _join(self, item: RateLimitItem, key: str, amount: int) -> asyncio.Future[int]:
        hits = self._next.get(key)
        if hits is None:
            hits = self._next[key] = _Hits(item.get_expiry())
        hits.amount += amount
        count: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        hits.waiting.append((count, hits.amount))
        return count

    async def _ask(self) -> None:
        try:
            while self._next:
                hits, self._next = self._next, {}
                commands = [
                    ("EVALSHA", self._sha, 1, f"coupon:{key}", it.expiry_s, it.amount)
                    for key, it in hits.items()
                ]
                try:
                    totals = await self._redis.run(*commands)
                except LocksUnavailable as error:
                    for it in hits.values():
                        it.fail(error)
                else:
                    for it, total in zip(hits.values(), totals, strict=True):
                        it.tell(total)
        finally:
            self._asking = None

    async def left_ms(self, keys: Sequence[str]) -> int:
        """How long until the last of these windows ends. Raises LocksUnavailable."""
        return max(await self._redis.run(*(("PTTL", f"coupon:{key}") for key in keys)))


class DenyList:
    """Who is refused until when. Of more than REMEMBERED_MAX the first are forgotten."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether anybody may be."""
        return bool(self._until_s)

    def left_ms(self, key: str) -> int:
        """For how long; 0 for who is not."""
        until_s = self._until_s.get(key)
        if until_s is None:
            return 0
        left_ms = round((until_s - monotonic()) * 1000)
        if left_ms <= 0:
            del self._until_s[key]
        return max(left_ms, 0)

    def add(self, key: str, left_ms: int) -> None:
        """From now on, for so long."""
        self._until_s.pop(key, None)
        if len(self._until_s) >= REMEMBERED_MAX:
            del self._until_s[next(iter(self._until_s))]
        self._until_s[key] = monotonic() + left_ms / 1000


class RateLimiter:
    """Counts the calls of those who have a limit. While Redis does not answer, nobody has one."""

    def __init__(self, limits: CallerLimits, windows: Windows, observer: LimitObserver) -> None:
        self._limits = Limits(limits)
        self._windows = windows
        self._observer = observer
        self._refused = DenyList()
        self._known: dict[tuple[object, ...], tuple[str, Sequence[Window]]] = {}
        self._paused_until_s = 0.0

    def limits(self, caller: Caller) -> bool:
        """Whether the calls of this caller are to be counted."""
        return bool(self._limits.of(caller))

    def _windows_of(self, cls: MethodClass, caller: Caller) -> tuple[str, Sequence[Window]]:
        """Under which name the calls of this class are counted, and in which windows."""
        # Whoever has a token is counted wherever they call from, on any number of connections.
        peer = caller.peer if caller.anonymous else ""
        who = (cls, caller.caller, caller.business_id, caller.end_user, peer)
        known = self._known.get(who)
        if known is None:
            name = f"{cls}/{self._limits.identity(caller)}"
            items = self._limits.of(caller)
            known = name, [(item, item.key_for("calls", name), 1) for item in items]
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[who] = known
        return known

    async def admit(self, method: str, caller: Caller) -> None:
        """Counts a call of `method`, "Service/Method". Raises RateLimited when it is too many."""
        cls = CLASS_OF.get(method.rpartition("/")[2], MethodClass.CHANGES)
        name, windows = self._windows_of(cls, caller)
        if left_ms := self._refused.left_ms(name):
            raise _refusal(cls, left_ms)
        if monotonic() < self._paused_until_s:
            self._observer.rate_limit_unchecked()
            return
        try:
            counts = await self._windows.hit(windows)
            over = [
                key
                for (item, key, _), count in zip(windows, counts, strict=True)
                if count > item.amount
            ]
            left_ms = await self._windows.left_ms(over) if over else 0
        except LocksUnavailable:
            self._paused_until_s = monotonic() + PAUSE_S
            self._observer.rate_limit_unchecked()
            return
        if left_ms > 0:
            self._refused.add(name, left_ms)
            raise _refusal(cls, left_ms)


def _refusal(cls: MethodClass, left_ms: int) -> RateLimited:
    return RateLimited(
        "Too many calls from this caller.", retry_after_ms=left_ms, method_class=cls.value
    )
