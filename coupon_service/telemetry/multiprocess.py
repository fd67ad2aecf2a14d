"""What the supervisor adds to the metrics: its workers, and what all of them have counted."""

# What prometheus_client has for several processes has no types.
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
"""In place of a process id in the names of the files that the counts of ended workers go to."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a service, now. `pids`: of those that run, by the name of the process."""

    configured: int
    ready: int
    restarts: int
    pids: Mapping[str, int]


class WorkerCounts(Collector):
    """What the workers have counted into the files of a folder.

    What a worker counted stays when it has ended, its gauges go. Its files are added up into one
    of each type, so that their number and size do not grow with the workers that ever were.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = MultiProcessCollector(None, str(folder))
        self._lock = threading.Lock()  # a scrape sees the counts of an ended worker once
        self._log = structlog.get_logger("coupon_service.process.supervisor")

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on what happens."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All of it, added up."""
        with self._lock:
            return iter(list(self._files.collect()))

    def worker_ended(self, pid: int) -> None:
        """Takes the gauges of a process away and its counts over. Call it once it has ended."""
        with self._lock:
            for path in self._folder.glob(f"*_{pid}.db"):
                if not path.name.startswith("gauge_"):
                    self._take_over(path, path.with_name(path.name.replace(str(pid), ENDED)))
                path.unlink()

    def _take_over(self, path: Path, into: Path) -> None:
        """Adds the counts of a file to those of another."""
        total = MmapedDict(str(into))
        try:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                total.write_value(key, total.read_value(key)[0] + value, 0.0)
        except (RuntimeError, UnicodeDecodeError, struct.error):  # killed as it began a new series
            self._log.warning("counts of a worker that died are not complete", file=path.name)
        finally:
            total.close()


class Processes(Collector):
    """Processor time, memory and descriptors of the supervisor and of each worker (Linux only)."""

    def __init__(self, workers: Callable[[], Workers]) -> None:
        self._workers = workers

    def describe(self) -> Iterator[Metric]:
        """Nothing, as for every process collector of prometheus_client."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The metrics that Prometheus knows a process by, with the label `process`."""
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
    """Which version this is, and how its workers do."""

    def __init__(self, workers: Callable[[], Workers]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Build and workers."""
        workers = self._workers()
        build = GaugeMetricFamily(
            "coupon_build_info", "1, with the version.", labels=["version", "python"]
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
    """All metrics of a service, whose workers count into the folder."""
    registry = CollectorRegistry()
    for collector in (
        counts,
        ReplicaGauges(folder / FILE_NAME),
        Service(workers),
        Processes(workers),
    ):
        registry.register(collector)
    return registry
