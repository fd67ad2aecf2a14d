"""The one place of micro-batching: what arrives at the same time is carried out together.

`MicroBatcher` is for work that is answered: queue, linger, take, execute, answer. `FlushBuffer` is
for what only waits for company, and has no answer. Every size and delay is in `BatchingSettings`.
"""

from coupon_service.batching.batcher import Batchable, MicroBatcher
from coupon_service.batching.detached import DetachedTasks
from coupon_service.batching.flush_buffer import FlushBuffer
from coupon_service.batching.lanes import CommandLanes
from coupon_service.batching.lazy import LazyCommand
from coupon_service.batching.linger import Rush
from coupon_service.batching.settings import (
    BATCHING_DEFAULTS,
    BatchingError,
    BatchingSettings,
    LingerSettings,
    MicroBatcherSettings,
)

__all__ = [
    "BATCHING_DEFAULTS",
    "Batchable",
    "BatchingError",
    "BatchingSettings",
    "CommandLanes",
    "DetachedTasks",
    "FlushBuffer",
    "LazyCommand",
    "LingerSettings",
    "MicroBatcher",
    "MicroBatcherSettings",
    "Rush",
]
