"""Who is limited to what, and under which name they are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol, TypeAlias
from urllib.parse import quote, unquote

from limits import RateLimitItem, parse_many

REMEMBERED_MAX: Final = 10_000
"""Callers of whom a worker remembers the network, the windows, or that they are refused."""

IPV6_SITE_BITS: Final = 64
"""What one customer of a network has at least; the rest of the address is theirs to choose."""


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


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits by kind of caller, as "100/minute" or "10/second;1000/hour"; "none": no limit.

    `peers` are callers without a token; those on this machine have no limits unless `loopback`.
    """

    end_users: str
    services: str
    peers: str
    loopback: bool = False


class CallerPolicy:
    """What a caller is limited to, and under which name its calls are counted."""

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
    found = address_of(peer)
    if found is None:
        return "" if peer.startswith("unix") else peer
    address, _ = found
    if address.is_loopback:
        return ""
    if isinstance(address, IPv6Address):
        bits = 128 - IPV6_SITE_BITS
        return f"{IPv6Address(int(address) >> bits << bits)}/{IPV6_SITE_BITS}"
    return str(address)


Address: TypeAlias = tuple[IPv4Address | IPv6Address, int]
"""An IP address and a port."""


def address_of(peer: str) -> Address | None:
    """The address of a peer, as gRPC names it; None of one that has none."""
    kind, _, host_and_port = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    host, _, port = host_and_port.rpartition(":")
    return socket_address(host.strip("[]"), int(port))


def socket_address(host: str, port: int) -> Address:
    """The address of a socket. One of IPv4 is the same however the system writes it."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address, port
