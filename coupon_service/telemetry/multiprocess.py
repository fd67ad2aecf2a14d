"""Metrics of a replica: the sum over its workers, and metrics of the processes themselves."""

# The multiprocess modules of prometheus_client have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import platform
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from coupon_service import __version__
from coupon_service.telemetry.replica_gauges import FILE_NAME, ReplicaGauges

ENDED = "ended"
"""Stands for the process id in the names of files that keep the counts of ended workers."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The current workers of a replica. `pids`: of those that run, by process name."""

    configured: int
    ready: int
    restarts: int
    pids: Mapping[str, int]


class WorkerCounts(Collector):
    """The sum of what workers counted into the files of a folder.

    The counts of an ended worker stay, its gauges go. Its files are merged into one file for each
    type, so that number and size of the files do not grow with each replaced worker.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = MultiProcessCollector(None, str(folder))
        self._lock = threading.Lock()  # so that no scrape counts an ended worker twice
        self._log = structlog.get_logger("coupon_service.process.supervisor")

    def describe(self) -> Iterator[Metric]:
        """Nothing: which metrics there are depends on the files."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics, summed over the workers."""
        with self._lock:
            return iter(list(self._files.collect()))

    def worker_ended(self, pid: int) -> None:
        """Merge the counts of a process that has ended, and drop its gauges."""
        with self._lock:
            for path in self._folder.glob(f"*_{pid}.db"):
                if not path.name.startswith("gauge_"):
                    self._merge(path, path.with_name(path.name.replace(str(pid), ENDED)))
                path.unlink()

    def _merge(self, path: Path, into: Path) -> None:
        """Add the counts of a file to those of another."""
        total = MmapedDict(str(into))
        try:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                total.write_value(key, total.read_value(key)[0] + value, 0.0)
        except (RuntimeError, UnicodeDecodeError, struct.error):  # killed while it added a series
            self._log.warning("counts of a worker that died are incomplete", file=path.name)
        finally:
            total.close()


class Processes(Collector):
    """CPU time, memory and descriptors of the supervisor and of each worker (Linux only)."""

    def __init__(self, workers: Callable[[], Workers]) -> None:
        self._workers = workers

    def describe(self) -> Iterator[Metric]:
        """Nothing, as for every process collector of prometheus_client."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Prometheus' standard process metrics, with the label `process`."""
        found: dict[str, Metric] = {}
        for name, pid in chain([("supervisor", "self")], self._workers().pids.items()):
            of_one = ProcessCollector(pid=lambda pid=pid: pid, registry=None)
            for metric in of_one.collect():
                total = found.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    total.add_sample(sample.name, {"process": name}, sample.value)
        return iter(found.values())


class Service(Collector):
    """The version and the state of the workers."""

    def __init__(self, workers: Callable[[], Workers]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Build and workers."""
        workers = self._workers()
        build = GaugeMetricFamily(
            "coupon_build_info",
            "Always 1; the labels are the version.",
            labels=["version", "python"],
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        state = GaugeMetricFamily(
            "coupon_workers",
            "Worker processes. state: configured, running, or ready to serve.",
            labels=["state"],
        )
        state.add_metric(["configured"], workers.configured)
        state.add_metric(["running"], len(workers.pids))
        state.add_metric(["ready"], workers.ready)
        yield state
        yield CounterMetricFamily(
            "coupon_worker_restarts_total",
            "Workers that died and were replaced.",
            value=workers.restarts,
        )


def service_registry(
    counts: WorkerCounts, folder: Path, workers: Callable[[], Workers]
) -> CollectorRegistry:
    """All metrics of a replica whose workers count into `folder`."""
    registry = CollectorRegistry()
    for collector in (
        counts,
        ReplicaGauges(folder / FILE_NAME),
        Service(workers),
        Processes(workers),
    ):
        registry.register(collector)
    return registry
