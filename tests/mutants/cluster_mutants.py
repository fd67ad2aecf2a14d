"""Mutants of how a Redis Cluster is used.

Made as those of `mutants`.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from unittest import mock

from mutants.mutants import Mutant, changed_source

from coupon_service.leases import acquisition
from coupon_service.leases.index_repairs import IndexWriter
from coupon_service.redis_client import cluster
from coupon_service.redis_client.cluster import ClusterPipelines


def moved_slots_not_followed() -> Mutant:
    """A master that has a slot no more is asked again and again."""
    return mock.patch.object(ClusterPipelines, "redirected", return_value=None)


def locks_refused_for_their_indexes() -> Mutant:
    """A lock is refused when an index cannot be reached."""
    return changed_source(
        acquisition,
        "Acquisition",
        "_found",
        "if not isinstance(reply, LocksUnavailable):",
        "if reply:",
    )


def one_master_fails_all() -> Mutant:
    """The error of one master is that of the whole call."""
    return changed_source(
        cluster, "ClusterPipelines", "_ask", "found = [error] * len(indices)", "raise"
    )


def silent_masters_waited_for() -> Mutant:
    """Calls find out whether a silent master answers again."""
    return changed_source(
        cluster, "ClusterPipelines", "_unless_spared", "failures.in_a_row > 1", "False"
    )


def missed_entries_forgotten() -> Mutant:
    """What could not be written to an index never is."""
    return mock.patch.object(IndexWriter, "missed")
