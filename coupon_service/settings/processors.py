"""How many processors this process may use: its affinity and the CPU quota of its cgroup."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FOLDERS_V2 = ("", "unified")
"""Where the one hierarchy of version 2 is mounted, and where beside those of version 1."""


def processors_available(root: Path = Path("/")) -> int:
    """The processors that this process may use, at least 1: those of its affinity, or fewer where
    a cgroup has a smaller CPU quota. A part of a processor counts as one, as in Go and the JVM.

    `root`: where `proc` and `sys` are.
    """
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return max(1, math.ceil(min([available, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in processors, of this process's cgroups and those above them (cgroups(7)).

    In a container the path can be that of the host, of which only the last folder is mounted, as
    the hierarchy's root: so folders that do not exist are passed over.
    """
    for folder in _folders(root):
        version_1 = [folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"]
        words = _text(folder / "cpu.max").split() or [
            it for file in version_1 for it in _text(file).split()
        ]
        if len(words) == 2 and all(word.isdecimal() for word in words):  # no limit: max, or -1
            yield int(words[0]) / int(words[1])


def _folders(root: Path) -> Iterator[Path]:
    """Where the quotas of this process can be: its cgroup and those above it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for folder in FOLDERS_V2 if number == "0" else (controllers, "cpu"):
            for each in (inner, *inner.parents):
                yield root / "sys/fs/cgroup" / folder / each


def _text(file: Path) -> str:
    """What the file says; nothing where there is none."""
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""
