"""Streaming commands whose line to the service becomes a black hole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from faults.proxy import BLACK_HOLE, HOST, PASS, Proxy
from support.service import Api, new_codes
from support.waiting import until

from coupon_service.cli import client
from coupon_service.cli.client import connect_blocking
from coupon_service.cli.rows import Chunk, Row
from coupon_service.cli.upload_stream import uploaded
from coupon_service.v1.coupon_code_service_pb2 import ImportHeader

KEEPALIVE = re.compile(r"keepalive|ping")


def test_import_continues_on_a_new_connection(
    api: Api, server_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicker = [(name, 500 if KEEPALIVE.search(name) else it) for name, it in client.OPTIONS]
    monkeypatch.setattr(client, "OPTIONS", tuple(quicker))
    book, codes = api.draft(), new_codes(2)
    with (
        ThreadPoolExecutor(1) as helper,
        Proxy(int(server_address.rpartition(":")[2])) as proxy,
        connect_blocking(f"{HOST}:{proxy.port}") as service,
    ):

        def heals() -> None:
            try:
                until(lambda: proxy.lines == 2)  # the first one was abandoned
            finally:
                proxy.rule = PASS

        def chunks() -> Iterator[Chunk]:
            yield Chunk(1, [Row(1, codes[0], codes[0])])
            proxy.rule = BLACK_HOLE
            healed.append(helper.submit(heals))
            yield Chunk(2, [Row(2, codes[1], codes[1])])

        healed = list[Future[None]]()
        header = ImportHeader(book_id=book.book_id, request_id="silence")
        answers = [answer.created_count for _, answer in uploaded(service, header, chunks())]
        healed[0].result()
    assert answers == [1, 1]
    assert api.stats(book.book_id).code_count == 2
