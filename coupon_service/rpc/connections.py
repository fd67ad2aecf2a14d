"""The connections of a worker: which of them have calls, and room for new ones.

gRPC closes a new connection when there are as many as may be, however long the others have had no
call: whoever opens enough of them would keep everybody else out. So when there are nearly as many,
those go that have had none for a while. gRPC closes no connection on request, but its sockets are
descriptors of this process: shutting one down is to it as if the peer had left.
"""

from __future__ import annotations

import os
import resource
import socket
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from coupon_service.ratelimit.callers import Address, address_of, socket_address
from coupon_service.rpc.abort import Answer
from coupon_service.rpc.messages import Context

INTERVAL_S: Final = 0.5
"""Between two checks for room. Only a connection that is older than this one is closed."""

FULL: Final = 0.9
"""From this part of the connections that may be on there is no room."""

ROOMY: Final = 0.7
"""And there is enough again at this part."""

RECENT_S: Final = 30.0
"""Who has had a call so recently stays."""

OTHER_DESCRIPTORS_MAX: Final = 128
"""What a worker opens beside its connections: pools, files, gRPC's own."""

DESCRIPTORS: Final = Path("/proc/self/fd")


class Connections:
    """Those of one worker, whose handler says which of them have calls."""

    def __init__(self, connections_max: int) -> None:
        descriptors_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors_max == resource.RLIM_INFINITY:
            descriptors_max = connections_max + OTHER_DESCRIPTORS_MAX
        self._max = max(1, min(connections_max, descriptors_max - OTHER_DESCRIPTORS_MAX))
        self._called: set[str] = set()
        self._called_before: set[str] = set()
        self._since_s = monotonic()
        self._streams: Counter[str] = Counter()
        self._seen: frozenset[Address] = frozenset()
        self._log = structlog.get_logger(__name__)

    def called(self, peer: str) -> None:
        """A call of the peer, by somebody who may make it, begins."""
        self._called.add(peer)

    def holding(self, work: Answer) -> Answer:
        """The work of a call that may take long, whose connection stays meanwhile."""

        async def held(given: object, context: Context) -> bytes | None:
            peer = context.peer()
            self._streams[peer] += 1
            try:
                return await work(given, context)
            finally:
                self._streams[peer] -= 1
                if not self._streams[peer]:
                    del self._streams[peer]

        return held

    def make_room(self, port: int) -> int:
        """Closes connections to this port when there are nearly as many as may be; how many.

        Call it every INTERVAL_S, from any thread. It does nothing where descriptors cannot be
        listed (other systems than Linux).
        """
        if monotonic() - self._since_s > RECENT_S:
            self._called, self._called_before, self._since_s = set(), self._called, monotonic()
        if _descriptors() < FULL * self._max:
            self._seen = frozenset()
            return 0
        sockets = dict(_sockets_of(port))
        try:
            known, self._seen = self._seen, frozenset(sockets)
            if len(sockets) < FULL * self._max:
                return 0
            return self._close(sockets, known, len(sockets) - int(ROOMY * self._max))
        finally:
            for each in sockets.values():
                each.close()

    def _close(
        self, sockets: dict[Address, socket.socket], known: Collection[Address], count: int
    ) -> int:
        """Closes so many of the known ones, or as many as have had no call for a while."""
        busy = set(map(address_of, (*self._called, *self._called_before, *self._streams)))
        idle = [address for address in sockets if address in known and address not in busy]
        for address in idle[:count]:
            with suppress(OSError):  # it has left by itself
                sockets[address].shutdown(socket.SHUT_RDWR)
        if closed := len(idle[:count]):
            self._log.warning("connections without a call closed", closed=closed, open=len(sockets))
        return closed


def _descriptors() -> int:
    """How many this process has open; 0 where the system does not say."""
    try:
        # The size says it since Linux 6.2.
        return DESCRIPTORS.stat().st_size or sum(1 for _ in DESCRIPTORS.iterdir())
    except OSError:
        return 0


def _sockets_of(port: int) -> Iterator[tuple[Address, socket.socket]]:
    """The connections that were accepted at the port, by the address of the peer.

    Each is a duplicate of the descriptor, which keeps meaning this connection when gRPC closes its
    own and the number is used again.
    """
    for descriptor in list(DESCRIPTORS.iterdir()):
        try:
            duplicate = os.dup(int(descriptor.name))
        except OSError:  # it is gone
            continue
        try:
            connection = socket.socket(fileno=duplicate)
        except OSError:  # it is no socket
            os.close(duplicate)
            continue
        address = _peer_at(port, connection)
        if address is None:
            connection.close()
        else:
            yield address, connection


def _peer_at(port: int, connection: socket.socket) -> Address | None:
    """The peer of a connection that was accepted at the port."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        own, peer = connection.getsockname(), connection.getpeername()
    except OSError:  # it listens, or has been closed
        return None
    return socket_address(peer[0], peer[1]) if own[1] == port else None
