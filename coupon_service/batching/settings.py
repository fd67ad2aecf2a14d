"""Every size and delay of batching, and how they depend on each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from coupon_service.settings.values import variable


class BatchingError(Exception):
    """The settings do not fit together; a sentence for each that does not."""


@dataclass(frozen=True, slots=True)
class LingerSettings:
    """How long a batch that fills waits for more.

    Where fewer than `busy_size` were served the last time, it waits for `idle_yields` turns of the
    event loop; where more were, until none has come for `linger_ms`, and no longer than they took.
    """

    idle_yields: int
    busy_size: int
    linger_ms: float


@dataclass(frozen=True, slots=True)
class MicroBatcherSettings:
    """Bounds of one batcher. Sizes in commands, times in milliseconds.

    `batch_max_wait_ms`: how long the first of a batch waits for others at most, however long the
    batch before took; 0 for not at all.
    """

    batch_max_size: int
    batches_in_flight: int
    batch_max_wait_ms: float
    queue_max_size: int
    linger: LingerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingSettings:
    """All of them. Sizes in commands, delays in milliseconds. Raises BatchingError.

    The first four are settings of the service; the others are what was measured to be best
    (docs/performance.md), and nobody else has to know them.
    """

    batch_max_size: int = 256
    batch_max_wait_ms: float = 50
    batches_in_flight: int = 1
    """Of single commands. Large calls and reads have one at a time."""
    queue_max_size: int = 10_000

    idle_yields: int = 8
    """In an idle worker: turns of the event loop that a batch yields before it starts, enough for
    commands that are on their way already, and too short to be noticed."""
    busy_size: int = 16
    """A worker is busy when the batch before had so many: more are on their way."""
    linger_ms: float = 6
    """In a busy worker: for how long no other may have come before a batch starts. It is more than
    `arrival_linger_ms`, or a batch would start between two arrival batches."""

    arrival_busy_calls: int = 32
    """With at most so many open calls, each goes on at once."""
    arrival_linger_ms: float = 5
    """How long the first call of an arrival batch waits for more."""
    access_log_delay_ms: float = 10
    """How long the first ended call waits for others that are logged and counted with it."""

    bulk_part_size: int = 125
    """Commands of a large call that share a transaction; other calls get their turn in between."""
    lock_batches_in_flight: int = 2
    """Batches of locks: one can acquire its permits in Redis while the other is recorded."""

    pipeline_max_size: int = 128
    """Commands that share a pipeline to Redis, which it takes a millisecond or two: far below its
    timeout."""
    pipeline_max_wait_ms: float = 10
    """How long the first command of a pipeline waits for others at most: far less than a command of
    a batch does, since Redis has only some milliseconds to answer."""

    def __post_init__(self) -> None:
        if problems := " ".join(self._problems()):
            raise BatchingError(problems)

    @property
    def commands(self) -> MicroBatcherSettings:
        """Of single commands."""
        return self._batcher(self.batches_in_flight)

    @property
    def bulk(self) -> MicroBatcherSettings:
        """Of the parts of large calls, which are enough as they are and wait for no others."""
        return self._batcher(1, max_wait_ms=0)

    @property
    def reads(self) -> MicroBatcherSettings:
        """Of what is looked up before a command, or for a caller who only reads."""
        return self._batcher(1)

    @property
    def locks(self) -> MicroBatcherSettings:
        """Of locks that are taken, or released, together."""
        return self._batcher(self.lock_batches_in_flight)

    @property
    def pipelines(self) -> MicroBatcherSettings:
        """Of commands to Redis. The queue has no bound of its own: who waits in it was admitted,
        and is not to be refused in the middle of what it does."""
        return replace(
            self._batcher(1, max_wait_ms=self.pipeline_max_wait_ms),
            batch_max_size=self.pipeline_max_size,
            queue_max_size=sys.maxsize,
        )

    @property
    def rate_windows(self) -> MicroBatcherSettings:
        """Of what is added to rate windows. Calls that come while one pipeline is on its way are
        added as one number, however many: there is nothing to wait for."""
        return replace(self.pipelines, batch_max_size=sys.maxsize, batch_max_wait_ms=0)

    def _batcher(
        self, batches_in_flight: int, max_wait_ms: float | None = None
    ) -> MicroBatcherSettings:
        return MicroBatcherSettings(
            batch_max_size=self.batch_max_size,
            batches_in_flight=batches_in_flight,
            batch_max_wait_ms=self.batch_max_wait_ms if max_wait_ms is None else max_wait_ms,
            queue_max_size=self.queue_max_size,
            linger=LingerSettings(self.idle_yields, self.busy_size, self.linger_ms),
        )

    def _problems(self) -> Iterator[str]:
        if self.linger_ms <= self.arrival_linger_ms:
            yield (
                f"linger_ms: expected more than arrival_linger_ms ({self.arrival_linger_ms:g}),"
                f" not {self.linger_ms:g}: it would end between two arrival batches."
            )
        if self.pipeline_max_wait_ms <= self.linger_ms:
            yield (
                f"pipeline_max_wait_ms: expected more than linger_ms ({self.linger_ms:g}), not"
                f" {self.pipeline_max_wait_ms:g}: a busy worker's pipelines would wait for nobody."
            )
        if 0 < self.batch_max_wait_ms <= self.linger_ms:
            yield (
                f"{variable('batch_max_wait_ms')}: expected 0, or more than {self.linger_ms:g}, for"
                f" which a batch waits for each next command, not {self.batch_max_wait_ms:g}."
            )


BATCHING_DEFAULTS: Final = BatchingSettings()
