"""The service, as `python -m coupon_service`, but that its processes tell what memory they use.

At SIGNAL a process frees what the collector finds, and gives back to the system what the allocator
keeps for later (malloc_trim(3)). Then it writes to a file how much of what the allocators of Python
and of C hold is allocated: the rest of its memory are gaps, which a slow moment makes larger for
good. The workers import this module too, as `__mp_main__`, since multiprocessing does so with the
one that is run.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from coupon_service.cli import main

SIGNAL: Final = signal.SIGUSR1
STDERR: Final = 2

_LIBC: Final = ctypes.CDLL(None)
_PYTHONS: Final = re.compile(r"# bytes in allocated blocks\s*=\s*([\d,]+)")
_MALLOC_FIELDS: Final = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Malloc(ctypes.Structure):
    """What mallinfo2(3) tells of all heaps of glibc."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLOC_FIELDS)
    hblkhd: int
    uordblks: int


def path(folder: Path, pid: int) -> Path:
    """Where that process writes what it uses, in bytes, when it runs in this folder."""
    return folder / f"in-use-{pid}"


def tidy() -> None:
    """Makes the memory of this process what is in use, but for gaps."""
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):  # glibc
        _LIBC.malloc_trim(0)


def in_use_bytes() -> int | None:
    """What is allocated in this process, by Python and by C.

    None where one of them does not tell: without glibc 2.33, or with another allocator of Python.
    """
    pythons = _pythons_bytes()
    if pythons is None or not hasattr(_LIBC, "mallinfo2"):
        return None
    _LIBC.mallinfo2.restype = _Malloc
    malloc: _Malloc = _LIBC.mallinfo2()
    return pythons + malloc.uordblks + malloc.hblkhd


def _pythons_bytes() -> int | None:
    """What Python's own allocator, which is not part of malloc, has given out."""
    with TemporaryFile() as told:
        stderr = os.dup(STDERR)
        os.dup2(told.fileno(), STDERR)
        try:
            sys._debugmallocstats()  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)
        told.seek(0)
        found = _PYTHONS.search(told.read().decode())
    return int(found[1].replace(",", "")) if found else None


def _tell(*_: object) -> None:
    tidy()
    told = path(Path.cwd(), os.getpid())
    written = told.with_suffix(".new")
    written.write_text(str(in_use_bytes() or ""), encoding="ascii")
    written.replace(told)


if __name__ in {"__main__", "__mp_main__"}:
    signal.signal(SIGNAL, _tell)

if __name__ == "__main__":
    main()
