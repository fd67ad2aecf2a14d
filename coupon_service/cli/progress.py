"""Progress of a long command on standard error: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINES_EVERY_S: Final = 2.0

Update = Callable[[int, int], None]
"""Takes the count and the bytes that are done; 0 bytes are not shown."""


@contextmanager
def progress(
    title: str, unit: str, total: int | None = None, total_bytes: int | None = None
) -> Generator[Update]:
    """A function that reports progress. A total of None is unknown."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, unit, total, total_bytes)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amounts]}"),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(title, total=total or total_bytes, amounts="")

        def update(done: int, done_bytes: int) -> None:
            text = amounts(unit, done, total, done_bytes, total_bytes)
            bar.update(task, completed=done if total else done_bytes, amounts=text)

        yield update


def _lines(title: str, unit: str, total: int | None, total_bytes: int | None) -> Update:
    """Writes at most one line every two seconds, and none within the first two."""
    written_s = time.monotonic()

    def update(done: int, done_bytes: int) -> None:
        nonlocal written_s
        if (now_s := time.monotonic()) - written_s < LINES_EVERY_S:
            return
        written_s = now_s
        typer.echo(f"{title}: {amounts(unit, done, total, done_bytes, total_bytes)}", err=True)

    return update


def amounts(
    unit: str, done: int, total: int | None, done_bytes: int, total_bytes: int | None
) -> str:
    """As in "5,000 of 12,000 rows, 85.0 kB of 204.0 kB"."""
    text = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    if done_bytes and total_bytes:
        return f"{text}, {decimal(done_bytes)} of {decimal(total_bytes)}"
    return f"{text}, {decimal(done_bytes)}" if done_bytes else text
