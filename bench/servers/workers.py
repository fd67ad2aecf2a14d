"""Worker processes behind one port, as in the service: SO_REUSEPORT, grpc.aio, uvloop."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable, Coroutine
from multiprocessing import connection
from typing import Any

import grpc.aio
import uvloop

Serve = Callable[[grpc.aio.Server], Coroutine[Any, Any, None]]
"""Adds servicers to the server. It runs in the worker's event loop, and can create its clients."""

OPTIONS = (("grpc.so_reuseport", 1), ("grpc.max_concurrent_streams", 2_000))


def run_workers(serve: Serve, address: str, workers: int) -> None:
    """Run until SIGTERM. `serve` has to be importable by another process."""
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    processes = [
        context.Process(target=_run_worker, args=(serve, address), daemon=True)
        for _ in range(workers)
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for process in processes:
            process.start()
        connection.wait([process.sentinel for process in processes])  # until one dies
    except KeyboardInterrupt:
        pass
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run_worker(serve: Serve, address: str) -> None:
    uvloop.run(_serve(serve, address))


async def _serve(serve: Serve, address: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = grpc.aio.server(options=OPTIONS)
    await serve(server)
    server.add_insecure_port(address)
    await server.start()
    await stopped.wait()
    await server.stop(None)
