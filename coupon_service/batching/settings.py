"""Every size and delay of batching, and how they depend on each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coupon_service.settings.values import variable


class BatchingError(Exception):
    """The settings do not fit together; a sentence for each that does not."""


@dataclass(frozen=True, slots=True)
class LingerSettings:
    """How long a batch that fills waits for more.

    Where fewer than `busy_size` were served the last time, it waits for `idle_yields` turns of the
    event loop; where more were, until none has come for `linger_ms`.
    """

    idle_yields: int
    busy_size: int
    linger_ms: float


@dataclass(frozen=True, slots=True)
class MicroBatcherSettings:
    """Bounds of one batcher. Sizes in commands, times in milliseconds.

    `batch_max_wait_ms`: how long the first of a batch waits for others at most; 0 for not at all.
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
    """Turns of the event loop that others have to come where few did before: enough for those who
    are already on their way in an idle worker, and too short to be noticed."""
    busy_size: int = 16
    """When so many were served together, more are on their way."""
    linger_ms: float = 6
    """Then they are waited for, until none has come for so long. Calls of a busy worker come by
    the bunch, one each `arrival_linger_ms`: a shorter wait would end between two of them."""

    arrival_busy_calls: int = 32
    """With fewer open calls each goes on at once."""
    arrival_linger_ms: float = 5
    """How long the first call of a bunch waits for more."""
    access_log_delay_ms: float = 10
    """How long the first of the ended calls that are logged and counted together waits for more."""

    bulk_part_size: int = 125
    """Commands of a large call that share a transaction: others have their turn between two."""
    lock_batches_in_flight: int = 2
    """Batches of locks: one can take its places in Redis while the other is recorded."""

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
                f" not {self.linger_ms:g}: it would end between two bunches of calls."
            )
        if 0 < self.batch_max_wait_ms <= self.linger_ms:
            yield (
                f"{variable('batch_max_wait_ms')}: expected 0, or more than {self.linger_ms:g}, for"
                f" which a batch waits for each next command, not {self.batch_max_wait_ms:g}."
            )
