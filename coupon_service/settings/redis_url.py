"""The URL of Redis, taken apart: one server, or several addresses of which Redis tells the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

EXPECTED: Final = (
    "a URL such as redis://:password@host:6379/0, unix:///run/redis.sock,"
    " redis+sentinel://:password@host:26379,host:26379/name or"
    " redis+cluster://:password@host:6379,host:6379; with TLS rediss:// and so on"
)

# The parameters of redis-py's connections that can be meant, each with the values that it takes.
_NUMBER, _BOOLEAN, _TEXT = r"[0-9]{1,9}", r"(?i:true|false|yes|no|t|f|y|n|1|0)", r".+"
_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "db": _NUMBER,
        "username": _TEXT,
        "password": _TEXT,
        "client_name": _TEXT,
        "socket_keepalive": _BOOLEAN,
        "health_check_interval": _NUMBER,
        "ssl_ca_certs": _TEXT,
        "ssl_ca_path": _TEXT,
        "ssl_ca_data": _TEXT,
        "ssl_certfile": _TEXT,
        "ssl_keyfile": _TEXT,
        "ssl_password": _TEXT,
        "ssl_cert_reqs": r"required|optional|none",
        "ssl_check_hostname": _BOOLEAN,
        "ssl_min_version": _NUMBER,
        "ssl_ciphers": _TEXT,
    }
)
_SENTINEL_PARAMETERS: Final = ("sentinel_username", "sentinel_password")


class Topology(Enum):
    """What the addresses of a URL are."""

    SERVER = "server"
    """The one server, by TCP or by a socket of this machine."""
    SENTINEL = "sentinel"
    """Some of the Sentinels that know where the master is."""
    CLUSTER = "cluster"
    """Some of the nodes of a Redis Cluster."""


_SCHEMES: Final = MappingProxyType(
    {
        "redis": Topology.SERVER,
        "rediss": Topology.SERVER,
        "unix": Topology.SERVER,
        "redis+sentinel": Topology.SENTINEL,
        "rediss+sentinel": Topology.SENTINEL,
        "redis+cluster": Topology.CLUSTER,
        "rediss+cluster": Topology.CLUSTER,
    }
)
_PORTS: Final = MappingProxyType(
    {Topology.SERVER: 6379, Topology.SENTINEL: 26_379, Topology.CLUSTER: 6379}
)
_HOST = re.compile(r"(?P<host>[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL of Redis."""

    topology: Topology
    addresses: tuple[tuple[str, int], ...]
    """Hosts and ports; none of a socket of this machine."""
    plain: str
    """The URL of the first address as redis-py takes it, with what all have in common."""
    name: str = ""
    """Under which the Sentinels know the master."""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    """Of the Sentinels, where they are not open; user and password of the URL are Redis's."""

    def at(self, host: str, port: int) -> str:
        """As ``plain``, of another address."""
        parts = urlsplit(self.plain)
        user, at, _ = parts.netloc.rpartition("@")
        bracketed = f"[{host}]" if ":" in host else host
        return parts._replace(netloc=f"{user}{at}{bracketed}:{port}").geturl()


def read_redis_url(text: str) -> RedisUrl:
    """Takes a URL apart. Raises ValueError, whose text holds nothing of it."""
    scheme, found, rest = text.partition("://")
    topology = _SCHEMES.get(scheme)
    if not found or topology is None or re.search(r"\s", text):
        raise ValueError(EXPECTED)
    rest, _, query = rest.partition("?")
    parameters = _parameters(query, topology)
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if scheme == "unix":
        if hosts or not path:
            raise ValueError(EXPECTED)
        return RedisUrl(topology, (), text)
    addresses = [_address(each, _PORTS[topology]) for each in hosts.split(",")]
    of_sentinels = [parameters.pop(it, None) for it in _SENTINEL_PARAMETERS]
    name = unquote(path) if topology is Topology.SENTINEL else ""
    number = "" if name else unquote(path)
    if not re.fullmatch(r"[0-9]{0,9}", number) or not _fits(topology, addresses, name):
        raise ValueError(EXPECTED)
    if topology is Topology.CLUSTER and int(number or 0) + int(parameters.get("db", 0)):
        raise ValueError(EXPECTED)
    host, port = addresses[0]
    bracketed = f"[{host}]" if ":" in host else host
    plain = f"{scheme.partition('+')[0]}://{user}{at}{bracketed}:{port}/{number}"
    _check_plain(plain, port)
    if parameters:
        plain += f"?{urlencode(parameters)}"
    return RedisUrl(topology, tuple(addresses), plain, name, *of_sentinels)


def _fits(topology: Topology, addresses: Sequence[object], name: str) -> bool:
    if topology is Topology.SENTINEL:
        return re.fullmatch(r"[0-9A-Za-z._-]+", name) is not None
    return topology is Topology.CLUSTER or len(addresses) == 1


def _check_plain(url: str, port: int) -> None:
    """That the parser of redis-py, which is urllib's, sees the same: a # is not quoted, say."""
    try:
        same = urlsplit(url).port == port
    except ValueError:
        same = False
    if not same:
        raise ValueError(EXPECTED)


def _parameters(query: str, topology: Topology) -> dict[str, str]:
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in parameters.items():
        pattern = _PARAMETERS.get(name)
        if name in _SENTINEL_PARAMETERS and topology is Topology.SENTINEL:
            pattern = _TEXT
        if pattern is None or not re.fullmatch(pattern, value):
            raise ValueError(EXPECTED)
    return parameters


def _address(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or default_port) if found else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError(EXPECTED)
    return found["host"].strip("[]"), port
