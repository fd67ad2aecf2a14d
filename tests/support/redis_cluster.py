"""A Redis Cluster of embedded servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.crc import key_slot
from support.redis_sentinels import PASSWORD, SharedPasswordRedis
from support.redis_tls import RedisTls

from coupon_service.embedded.machine import HOST
from coupon_service.leases.scripts import book_index, user_index

SLOTS = 16_384
FORMED_S_MAX = 30.0


@dataclass
class Cluster:
    """Masters that share the slots."""

    nodes: list[SharedPasswordRedis]
    tls: RedisTls | None = None

    @property
    def url(self) -> str:
        """The URL of the service."""
        hosts = ",".join(f"{HOST}:{it.port}" for it in self.nodes)
        scheme, query = ("rediss", f"?{self.tls.query}") if self.tls else ("redis", "")
        return f"{scheme}+cluster://:{PASSWORD}@{hosts}{query}"

    def ask(self, node: SharedPasswordRedis, *command: str | int) -> Any:
        """The reply of one node."""
        return node.ask(*command)

    def id_of(self, node: SharedPasswordRedis) -> str:
        """Under which the cluster knows a node."""
        return self.ask(node, "CLUSTER", "MYID")

    def master_of(self, key: str) -> SharedPasswordRedis:
        """The node that has the slot of a key, as the first says."""
        (master,) = self.masters_of([key])
        return master

    def masters_of(self, keys: Iterable[str]) -> list[SharedPasswordRedis]:
        """As `master_of`, for many."""
        nodes = {it.port: it for it in self.nodes}
        ranges = [
            (range(first, last + 1), nodes[port])
            for first, last, (_, port, *_), *_ in self.ask(self.nodes[0], "CLUSTER", "SLOTS")
        ]
        slots = (key_slot(key.encode()) for key in keys)
        return [next(node for its, node in ranges if slot in its) for slot in slots]

    def slot_of(self, code: str) -> int:
        """The slot of the permits of a code."""
        return key_slot(code.encode())

    def code_at(self, node: SharedPasswordRedis, prefix: str = "CODE") -> str:
        """A code whose permits are on a node."""
        return self._name_at(node, prefix, str)

    def user_at(self, node: SharedPasswordRedis) -> str:
        """A user whose index is on a node."""
        return self._name_at(node, "user", user_index)

    def book_at(self, node: SharedPasswordRedis) -> str:
        """A book whose index is on a node."""
        return self._name_at(node, "book", book_index)

    def _name_at(self, node: SharedPasswordRedis, prefix: str, key_of: Callable[[str], str]) -> str:
        names = [f"{prefix}{i}" for i in range(1_000)]
        masters = self.masters_of(map(key_of, names))
        return next(it for it, master in zip(names, masters, strict=True) if master is node)

    def flush(self) -> None:
        """Delete all keys."""
        for node in self.nodes:
            self.ask(node, "FLUSHALL")

    def move_slot(self, slot: int, target: SharedPasswordRedis, keys: int = 1) -> None:
        """Move a slot as redis-cli does, so many keys at a time."""
        source = next(
            node
            for node in self.nodes
            for first, last, (_, port, *_), *_ in self.ask(self.nodes[0], "CLUSTER", "SLOTS")
            if first <= slot <= last and port == node.port
        )
        if source is target:
            return
        source_id, target_id = self.id_of(source), self.id_of(target)
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        to = (HOST, target.port, "", 0, 5_000, "AUTH", PASSWORD, "KEYS")
        while found := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, keys):
            self.ask(source, "MIGRATE", *to, *found)
        for node in (target, source, *self.nodes):
            self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)


@contextmanager
def redis_cluster(
    folder: Path, replicas: int = 0, tls: RedisTls | None = None
) -> Generator[Cluster]:
    """A cluster of three masters, each with so many replicas, which serve their slots also when
    others are down. `tls`: all of them take TLS alone."""
    masters = 3
    every = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "1000",
        "cluster-require-full-coverage": "no",
        "masterauth": PASSWORD,
        "repl-diskless-sync-delay": "0",
    }
    with ExitStack() as servers:
        nodes = [
            servers.enter_context(SharedPasswordRedis(folder / f"node-{i}", every, tls))
            for i in range(masters * (1 + replicas))
        ]
        cluster = Cluster(nodes, tls)
        bounds = [SLOTS * i // masters for i in range(masters + 1)]
        for node, first, last in zip(nodes[:masters], bounds, bounds[1:], strict=False):
            cluster.ask(node, "CLUSTER", "ADDSLOTS", *range(first, last))
            cluster.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", nodes.index(node) + 1)
        for node in nodes[1:]:
            cluster.ask(node, "CLUSTER", "MEET", HOST, nodes[0].port)
        deadline_s = time.monotonic() + FORMED_S_MAX
        while not all(_is_formed(cluster, it) for it in nodes):
            assert time.monotonic() < deadline_s, "the nodes do not find each other"
            time.sleep(0.02)
        for i, replica in enumerate(nodes[masters:]):
            cluster.ask(replica, "CLUSTER", "REPLICATE", cluster.id_of(nodes[i % masters]))
        while not all(_is_linked(cluster, it) for it in nodes[masters:]):
            assert time.monotonic() < deadline_s, "the replicas do not follow"
            time.sleep(0.02)
        yield cluster


def _is_linked(cluster: Cluster, replica: SharedPasswordRedis) -> bool:
    return cluster.ask(replica, "INFO", "replication")["master_link_status"] == "up"


def _is_formed(cluster: Cluster, node: SharedPasswordRedis) -> bool:
    lines = cluster.ask(node, "CLUSTER", "INFO").split()
    return {
        "cluster_state:ok",
        f"cluster_slots_ok:{SLOTS}",
        f"cluster_known_nodes:{len(cluster.nodes)}",
    } <= set(lines)
