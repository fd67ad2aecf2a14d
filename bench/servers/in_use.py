"""The service, as `python -m coupon_service`, with processes that report their memory in use.

On SIGNAL a process collects garbage and returns free memory of the allocator to the system
(malloc_trim(3)). Then it writes to a file how many bytes the allocators of Python and of C have
handed out. The rest of its memory is fragmentation, which a slow phase increases for good. The
workers import this module as well, as `__mp_main__`, since multiprocessing imports the main module.
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
_PYMALLOC_LINE: Final = re.compile(r"# bytes in allocated blocks\s*=\s*([\d,]+)")
_MALLOC_FIELDS: Final = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Malloc(ctypes.Structure):
    """The result of mallinfo2(3), for all heaps of glibc."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLOC_FIELDS)
    hblkhd: int
    uordblks: int


def report_path(folder: Path, pid: int) -> Path:
    """The file with the bytes in use of a process that runs in `folder`."""
    return folder / f"in-use-{pid}"


def free_unused() -> None:
    """Free all memory of this process that is not in use, apart from fragmentation."""
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):  # glibc
        _LIBC.malloc_trim(0)


def in_use_bytes() -> int | None:
    """The bytes that the allocators of Python and of C have handed out.

    None without glibc 2.33, or with another allocator of Python, which do not report it.
    """
    pymalloc = _pymalloc_bytes()
    if pymalloc is None or not hasattr(_LIBC, "mallinfo2"):
        return None
    _LIBC.mallinfo2.restype = _Malloc
    malloc: _Malloc = _LIBC.mallinfo2()
    return pymalloc + malloc.uordblks + malloc.hblkhd


def _pymalloc_bytes() -> int | None:
    """The bytes that pymalloc, which is not part of malloc, has handed out."""
    with TemporaryFile() as output:
        stderr = os.dup(STDERR)
        os.dup2(output.fileno(), STDERR)
        try:
            sys._debugmallocstats()  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)
        output.seek(0)
        found = _PYMALLOC_LINE.search(output.read().decode())
    return int(found[1].replace(",", "")) if found else None


def _report(*_: object) -> None:
    free_unused()
    report = report_path(Path.cwd(), os.getpid())
    new = report.with_suffix(".new")
    new.write_text(str(in_use_bytes() or ""), encoding="ascii")
    new.replace(report)


if __name__ in {"__main__", "__mp_main__"}:
    signal.signal(SIGNAL, _report)

if __name__ == "__main__":
    main()
