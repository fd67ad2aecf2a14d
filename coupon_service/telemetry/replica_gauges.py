"""Gauges of what all workers of a replica see alike: one of them looks, the supervisor shows it.

prometheus_client cannot take a series away in its multiprocess mode, and books come and go; so
these are kept as a whole, in a file where there are several processes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

Values = Mapping[str, Mapping[str, float]]
"""For each gauge its values by their label, which is empty for a gauge without one."""

GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "coupon_book_left": (
        "book_id",
        "What a book with a low_threshold has left; first of those that run low, then used up.",
    ),
    "coupon_book_low_threshold": ("book_id", "The low_threshold of the same books."),
    "coupon_books_watched": (
        "level",
        "Active books with a low_threshold. level: ENOUGH, LOW or USED_UP.",
    ),
    "coupon_locks_live": ("", "Locks that have not ended."),
    "coupon_sweep_lag_seconds": (
        "",
        "How long a lock that ran out has been waiting for the ledger.",
    ),
    "coupon_ledger_lag_seconds": ("", "Age of the oldest transaction that writes."),
}
"""The label and the meaning of each."""


FILE_NAME: Final = "shared_gauges.json"
"""Beside the files of prometheus_client, which leaves it alone."""


class ReplicaGauges(Collector):
    """The gauges, in memory or, with a `path`, in this file. Times in seconds."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._text = ""

    def show(self, values: Values, lifetime_s: float) -> None:
        """Shows these and no others, for so long unless there are newer ones."""
        now_s = time.time()
        text = json.dumps({"values": values, "time": now_s, "end": now_s + lifetime_s})
        if self._path is None:
            self._text = text
            return
        new = self._path.with_suffix(f".{os.getpid()}")
        new.write_text(text, "utf-8")
        new.replace(self._path)  # whoever reads it sees the one or the other

    def age_s(self) -> float:
        """How long ago they were shown; infinite when never."""
        text = self._read()
        return time.time() - json.loads(text)["time"] if text else math.inf

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """All of them, without values."""
        for name, (label, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, labels=[label] if label else [])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All of them that have values which are not too old."""
        shown = json.loads(self._read() or "{}")
        if time.time() >= shown.get("end", 0):
            return
        for family, name in zip(self.describe(), GAUGES, strict=True):
            for label, value in shown["values"].get(name, {}).items():
                family.add_metric([label] if label else [], value)
            yield family

    def _read(self) -> str:
        if self._path is None:
            return self._text
        try:
            return self._path.read_text("utf-8")
        except FileNotFoundError:
            return ""
