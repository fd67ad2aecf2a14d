"""Streams and uploads of both clients over connections that break."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager

import pytest
from faults.proxy import PASS, Proxy, Rule
from support.clients import Either
from support.service import Api, new_codes

from coupon_service.client import AsyncCouponClient, ClientSettings, CouponClient
from coupon_service.client.methods import codes as code_methods

PATIENT = ClientSettings(timeout_s=30, backoff_min_s=0.01, backoff_max_s=0.1)
CODES = 6_000


@pytest.fixture
def proxy(server_address: str) -> Generator[Proxy]:
    with Proxy(int(server_address.rpartition(":")[2])) as running:
        yield running


@pytest.fixture(params=["blocking", "asynchronous"])
async def client(request: pytest.FixtureRequest, proxy: Proxy) -> AsyncIterator[Either]:
    address = f"127.0.0.1:{proxy.port}"
    if request.param == "blocking":
        with CouponClient(address, settings=PATIENT) as blocking:
            yield Either(blocking)
    else:
        async with AsyncCouponClient(address, settings=PATIENT) as asynchronous:
            yield Either(asynchronous)


@contextmanager
def breaking(proxy: Proxy, after_bytes: int) -> Generator[None]:
    """Lines break after so many bytes, and again and again, while there is no end to it."""
    ended = threading.Event()

    def heal() -> None:
        ended.wait(2)
        proxy.rule = PASS

    proxy.rule = Rule(cut_after_bytes=after_bytes)
    healing = threading.Thread(target=heal)
    healing.start()
    yield
    ended.set()
    healing.join()


async def test_an_export_goes_on_where_it_broke(client: Either, proxy: Proxy, api: Api) -> None:
    codes = new_codes(CODES)
    book = api.book(codes=codes)
    with breaking(proxy, after_bytes=150_000):
        exported = [it.code for it in await client.export_codes(book.book_id)]
    assert sorted(exported) == sorted(codes)


async def test_a_generation_goes_on_where_it_broke(client: Either, proxy: Proxy, api: Api) -> None:
    book = api.book()
    with breaking(proxy, after_bytes=600):
        progress = await client.generate_codes(book.book_id, CODES)
    assert progress[-1].generated_count == CODES
    assert api.stats(book.book_id).code_count == CODES


async def test_an_upload_goes_on_where_it_broke(
    client: Either, proxy: Proxy, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_methods, "CHUNK_ROWS_MAX", 500)
    book = api.book()
    with breaking(proxy, after_bytes=30_000):
        answers = await client.import_codes(book.book_id, new_codes(CODES))
    assert sum(it.created_count for it in answers) == CODES
    assert api.stats(book.book_id).code_count == CODES
