"""Gauges that are the same for all workers: one worker sets them, the supervisor exports them.

prometheus_client cannot remove a series in its multiprocess mode, and books come and go. So these
gauges are replaced as a whole, in a file where there are several processes.
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
"""The values of each gauge by label value; the empty string for a gauge without a label."""

GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "coupon_book_left": (
        "book_id",
        "What a book with a low_threshold has left: books that run low first, then used up ones.",
    ),
    "coupon_book_low_threshold": ("book_id", "The low_threshold of the same books."),
    "coupon_books_watched": (
        "level",
        "Active books with a low_threshold. level: ENOUGH, LOW or USED_UP.",
    ),
    "coupon_locks_live": ("", "Live locks."),
    "coupon_sweep_lag_seconds": (
        "",
        "How long the oldest expired lock has been missing from the ledger.",
    ),
    "coupon_ledger_lag_seconds": ("", "Age of the oldest open transaction that writes."),
    "coupon_ledger_sealed_number": ("", "The number up to which the ledger is sealed."),
    "coupon_ledger_seal_lag_seconds": (
        "",
        "How long the oldest change that is not sealed has been in the ledger.",
    ),
    "coupon_erasure_unfinished_seconds": (
        "",
        "How long ago the oldest erasure began that is not finished.",
    ),
}
"""The label and the help text of each gauge."""


FILE_NAME: Final = "shared_gauges.json"
"""Lies beside the files of prometheus_client, which ignores it."""


class ReplicaGauges(Collector):
    """The gauges, in memory or, with a `path`, in that file. Times in seconds."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._text = ""

    def publish(self, values: Values, lifetime_s: float) -> None:
        """Replace all values. They disappear after `lifetime_s` without newer ones."""
        now_s = time.time()
        text = json.dumps({"values": values, "time": now_s, "end": now_s + lifetime_s})
        if self._path is None:
            self._text = text
            return
        new = self._path.with_suffix(f".{os.getpid()}")
        new.write_text(text, "utf-8")
        new.replace(self._path)  # atomic for readers

    def age_s(self) -> float:
        """Time since the last values were published; infinite when there were none."""
        text = self._read()
        return time.time() - json.loads(text)["time"] if text else math.inf

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """All gauges, without values."""
        for name, (label, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, labels=[label] if label else [])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges, with the values that have not expired."""
        published = json.loads(self._read() or "{}")
        if time.time() >= published.get("end", 0):
            return
        for family, name in zip(self.describe(), GAUGES, strict=True):
            for label, value in published["values"].get(name, {}).items():
                family.add_metric([label] if label else [], value)
            yield family

    def _read(self) -> str:
        if self._path is None:
            return self._text
        try:
            return self._path.read_text("utf-8")
        except FileNotFoundError:
            return ""
