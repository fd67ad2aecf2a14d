"""A TLS proxy for servers without TLS, such as the embedded ones."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager

from support.certificates import Pair

HOST = "127.0.0.1"
SSL_REQUEST_BYTES = 8


@contextmanager
def tls_in_front_of(port: int, own: Pair, *, postgresql: bool = False) -> Generator[int]:
    """The port of a TLS proxy with this certificate, in front of `port`.

    `postgresql`: clients send an SSLRequest first, as in the protocol of PostgreSQL.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.certificate, own.key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while chunk := await reader.read(65_536):
                writer.write(chunk)
                await writer.drain()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            if postgresql:
                await reader.readexactly(SSL_REQUEST_BYTES)
                writer.write(b"S")
            await writer.start_tls(context)
            behind_reader, behind_writer = await asyncio.open_connection(HOST, port)
            await asyncio.gather(
                copy(reader, behind_writer), copy(behind_reader, writer), return_exceptions=True
            )

    async def start() -> asyncio.Server:
        return await asyncio.start_server(forward, HOST, 0)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_ignore)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _ignore(_loop: asyncio.AbstractEventLoop, _context: object) -> None:
    """Ignore clients that disconnect, which tests do on purpose."""


async def _end(server: asyncio.Server) -> None:
    server.close()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
