"""Processors that the process may use: affinity, and quotas of cgroups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coupon_service.settings.processors import processors_available

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def affinity(_: int) -> set[int]:
        return set(range(16))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)


def machine(folder: Path, cgroup: str, **files: str) -> Path:
    """A machine's `proc` and `sys`; `files`: what those of `sys/fs/cgroup` say, `__` being `/`."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        *folders, file = name.split("__")
        path = folder.joinpath("sys/fs/cgroup", *folders, f"cpu.{file}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_affinity_counts_without_cgroups(tmp_path: Path) -> None:
    assert processors_available(tmp_path) == 16


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("150000 100000", 2),  # docker run --cpus=1.5
        ("10000 100000", 1),
        ("3200000 100000", 16),
    ],
)
def test_quota_of_a_container(tmp_path: Path, limit: str, expected: int) -> None:
    root = machine(tmp_path, "0::/\n", max=f"{limit}\n")
    assert processors_available(root) == expected


def test_smallest_quota_above_the_process_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "1:name=systemd:/a b\n0::/kubepods/pod7/main\n",
        kubepods__max="400000 100000",
        kubepods__pod7__max="300000 100000",
        kubepods__pod7__main__max="max 100000",
    )
    assert processors_available(root) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("200000", 2)])
def test_quota_of_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"cpu__cfs_quota_us": quota, "cpu__cfs_period_us": "100000"}
    root = machine(tmp_path, "4:memory:/\n3:cpu,cpuacct:/\n0::/\n", **files)
    assert processors_available(root) == expected


def test_quota_of_version_1_under_the_path_of_the_host(tmp_path: Path) -> None:
    files = {"cpu,cpuacct__cfs_quota_us": "50000", "cpu,cpuacct__cfs_period_us": "25000"}
    root = machine(tmp_path, "3:cpu,cpuacct:/docker/0a1b\n", **files)
    assert processors_available(root) == 2


@pytest.mark.parametrize("name", ["cpuset", "cpuacct"])
def test_other_controllers_have_no_quota(tmp_path: Path, name: str) -> None:
    root = machine(tmp_path, f"3:{name}:/a\n", a__max="100000 100000")
    assert processors_available(root) == 16


def test_workers_default_to_the_affinity_of_the_process() -> None:
    program = f"""
import os
os.sched_setaffinity(0, {{{CORES[0]}}})
from coupon_service.settings import load_settings
print(load_settings(None).workers)
"""
    environment = {name: value for name, value in os.environ.items() if "COUPON_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "1"
