"""The metrics of several workers are one set, also when workers die and are replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import coupon_service
from coupon_service.telemetry.multiprocess import WorkerCounts, Workers, service_registry
from coupon_service.telemetry.replica_gauges import FILE_NAME, GAUGES, ReplicaGauges

REDEEM = "RedemptionService/RedeemCode"
OK = {"method": REDEEM, "status": "OK", "transport": "call"}

WORKER = f"""
import os
from prometheus_client import CollectorRegistry
from coupon_service.telemetry.metrics import Metrics

metrics = Metrics(CollectorRegistry())
metrics.rpcs_finished("{REDEEM}", "OK", "", [0.004])
metrics.commands_decided({{("REDEEMED", "done", ""): 3}})
metrics.queue_changed("changes", 5)
metrics.pool_sampled("main", connections=4, idle=1, waiting=0)
print(os.getpid())
"""


def run_worker(folder: Path) -> int:
    """Run a worker that counts a call and exits; returns its process id."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", WORKER]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a worker, with PID in their names instead of its process id."""
    folder = tmp_path_factory.mktemp("worker")
    pid = run_worker(folder)
    return {it.name.replace(str(pid), "PID"): it.read_bytes() for it in folder.iterdir()}


class Folder:
    """The metrics folder of workers that all have counted the same."""

    def __init__(self, path: Path, files: dict[str, bytes]) -> None:
        self.path = path
        self.counts = WorkerCounts(path)
        self._files = files
        self._registry = CollectorRegistry()
        self._registry.register(self.counts)

    def add(self, pid: int) -> None:
        """Add the files of one more worker."""
        for name, content in self._files.items():
            (self.path / name.replace("PID", str(pid))).write_bytes(content)

    def value(self, name: str, **labels: str) -> float | None:
        """The value that a scrape returns."""
        return self._registry.get_sample_value(name, labels)


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, bytes]) -> Folder:
    return Folder(tmp_path, files)


class TestWorkerCounts:
    def test_counts_and_gauges_are_summed_over_workers(self, folder: Folder) -> None:
        for pid in (11, 12):
            folder.add(pid)
        assert folder.value("coupon_rpcs_total", **OK, reason="") == 2
        assert folder.value("coupon_rpc_duration_seconds_bucket", **OK, le="0.005") == 2
        assert folder.value("coupon_queue_length", kind="changes") == 10
        assert folder.value("coupon_pool_connections", pool="main") == 8

    def test_ended_worker_keeps_its_counts_but_not_its_gauges(self, folder: Folder) -> None:
        for pid in (11, 12):
            folder.add(pid)
        folder.counts.worker_ended(11)
        assert folder.value("coupon_queue_length", kind="changes") == 5
        assert folder.value("coupon_rpcs_total", **OK, reason="") == 2
        assert folder.value("coupon_rpc_duration_seconds_bucket", **OK, le="0.005") == 2
        assert folder.value("coupon_rpc_duration_seconds_count", **OK) == 2
        assert folder.value("coupon_rpc_duration_seconds_sum", **OK) == pytest.approx(0.008)

    def test_files_do_not_grow_with_replaced_workers(self, folder: Folder) -> None:
        sizes: list[dict[str, int]] = []
        for pid in range(100, 120):
            folder.add(pid)
            folder.counts.worker_ended(pid)
            sizes.append({it.name: it.stat().st_size for it in folder.path.iterdir()})
        assert sorted(sizes[-1]) == ["counter_ended.db", "histogram_ended.db"]
        assert sizes[-1] == sizes[0]
        assert folder.value("coupon_rpcs_total", **OK, reason="") == 20
        assert folder.value("coupon_rpc_duration_seconds_count", **OK) == 20
        assert (
            folder.value("coupon_commands_total", event="REDEEMED", outcome="done", reason="") == 60
        )

    def test_corrupt_file_of_a_killed_worker_is_skipped(self, folder: Folder) -> None:
        folder.add(11)
        folder.counts.worker_ended(11)
        folder.add(12)
        path = folder.path / "counter_12.db"
        content = bytearray(path.read_bytes())
        content[8:12] = (2**20).to_bytes(4, "little")  # the length of the first key
        path.write_bytes(content)
        folder.counts.worker_ended(12)
        assert folder.value("coupon_rpcs_total", **OK, reason="") == 1
        assert folder.value("coupon_rpc_duration_seconds_count", **OK) == 2

    def test_worker_without_files_is_accepted(self, folder: Folder) -> None:
        folder.counts.worker_ended(11)
        assert list(folder.path.iterdir()) == []


class TestService:
    @pytest.fixture
    def registry(self, tmp_path: Path) -> CollectorRegistry:
        workers = Workers(configured=3, ready=1, restarts=4, pids={"worker-0": os.getpid()})
        return service_registry(WorkerCounts(tmp_path), tmp_path, lambda: workers)

    def test_version_and_workers_are_exported(self, registry: CollectorRegistry) -> None:
        python = ".".join(map(str, sys.version_info[:3]))
        build = {"version": coupon_service.__version__, "python": python}
        assert registry.get_sample_value("coupon_build_info", build) == 1
        states = ("configured", "running", "ready")
        assert [registry.get_sample_value("coupon_workers", {"state": it}) for it in states] == [
            3,
            1,
            1,
        ]
        assert registry.get_sample_value("coupon_worker_restarts_total") == 4

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
    def test_processes_are_exported_by_name(self, registry: CollectorRegistry) -> None:
        for name in ("supervisor", "worker-0"):
            value = registry.get_sample_value("process_resident_memory_bytes", {"process": name})
            assert value is not None
            assert value > 1_000_000
            for metric in ("process_cpu_seconds_total", "process_open_fds", "process_max_fds"):
                assert registry.get_sample_value(metric, {"process": name}), metric

    def test_ended_process_is_left_out(self, tmp_path: Path) -> None:
        workers = Workers(1, 0, 0, {"worker-0": 2**22 + 1})  # more than Linux has
        registry = service_registry(WorkerCounts(tmp_path), tmp_path, lambda: workers)
        name = "process_open_fds"
        assert registry.get_sample_value(name, {"process": "worker-0"}) is None


class TestReplicaGauges:
    @pytest.fixture(params=["memory", "file"])
    def gauges(self, request: pytest.FixtureRequest, tmp_path: Path) -> ReplicaGauges:
        return ReplicaGauges(tmp_path / FILE_NAME if request.param == "file" else None)

    def test_published_values_replace_the_earlier_ones(self, gauges: ReplicaGauges) -> None:
        registry = CollectorRegistry()
        registry.register(gauges)
        gauges.publish({"coupon_book_left": {"b1": 3, "b2": 4}, "coupon_locks_live": {"": 1}}, 60)
        gauges.publish({"coupon_book_left": {"b2": 5}}, 60)
        value = registry.get_sample_value
        assert value("coupon_book_left", {"book_id": "b1"}) is None
        assert value("coupon_book_left", {"book_id": "b2"}) == 5
        assert value("coupon_locks_live") is None

    def test_expired_values_are_not_exported(self, gauges: ReplicaGauges) -> None:
        gauges.publish({"coupon_locks_live": {"": 1}}, 0)
        assert list(gauges.collect()) == []

    def test_age_is_the_time_since_values_were_published(self, gauges: ReplicaGauges) -> None:
        assert gauges.age_s() > 1e9
        before = time.time()
        gauges.publish({}, 60)
        assert 0 <= gauges.age_s() <= time.time() - before

    def test_another_process_reads_published_values(self, tmp_path: Path) -> None:
        path = tmp_path / FILE_NAME
        ReplicaGauges(path).publish({"coupon_locks_live": {"": 7}}, 60)
        registry = CollectorRegistry()
        registry.register(ReplicaGauges(path))
        assert registry.get_sample_value("coupon_locks_live") == 7
        assert [it.name for it in tmp_path.iterdir()] == [FILE_NAME]

    def test_all_gauges_are_described(self, gauges: ReplicaGauges) -> None:
        assert [it.name for it in gauges.describe()] == list(GAUGES)
