"""The service, as `python -m coupon_service`, but that its processes can be told to tidy up.

At SIGNAL a process frees what the collector finds, and gives back to the system what the allocator
keeps for later (malloc_trim(3)): what it then has is in use. The workers import this module too, as
`__mp_main__`, since multiprocessing does so with the one that is run.
"""

from __future__ import annotations

import ctypes
import gc
import signal
from typing import Final

from coupon_service.cli import main

SIGNAL: Final = signal.SIGUSR1

_LIBC: Final = ctypes.CDLL(None)


def tidy(*_: object) -> None:
    """Makes the memory of this process what is in use."""
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):  # glibc
        _LIBC.malloc_trim(0)


if __name__ in {"__main__", "__mp_main__"}:
    signal.signal(SIGNAL, tidy)

if __name__ == "__main__":
    main()
