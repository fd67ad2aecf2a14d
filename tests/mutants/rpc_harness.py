"""What has to catch the mutants of rpc: small, and failing with an AssertionError."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from unittest import mock

from mutants.harness import PATIENCE_S, Stack
from prometheus_client import CollectorRegistry
from support import http2_frames as frames
from support.calls import tried
from support.key_publisher import key_publisher
from support.service import (
    Api,
    ServerThread,
    books,
    codes,
    new_codes,
    redemptions,
    settings_for,
    unique,
)
from support.token_clients import ISSUER, caller
from support.token_issuers import ASKED_FOR, Issuer

from coupon_service.rpc import connections
from coupon_service.rpc.paging import PageTokens
from coupon_service.security import key_fetcher
from coupon_service.telemetry.metrics_http import serve_metrics

WATCH = "/grpc.health.v1.Health/Watch"
LONG_MS = 600_000


@contextmanager
def server(it: Stack, **settings: Any) -> Generator[ServerThread]:
    """A server on the same data with settings of its own."""
    with ServerThread(settings_for(it.database_url, it.redis_url, **settings)) as running:
        yield running


def port_of(running: ServerThread) -> int:
    return int(running.address.rpartition(":")[2])


def answer(api: Api, *, wait_for_ready: bool = False) -> str:
    """How a call ends, which is given up before gRPC sends clients away that are silent."""
    call: Any = api.books.ListCouponBooks
    request = books.ListCouponBooksRequest(business_id="nobody")
    return tried(lambda: call(request, timeout=2.5, wait_for_ready=wait_for_ready))


def refused_after(connection: socket.socket, stream: int) -> bool:
    """Whether this stream ends before the server falls silent."""
    return any(
        ended == stream and (kind == frames.RST_STREAM or b"grpc-status" in payload)
        for kind, ended, payload in frames.answers(connection, 1)
    )


def path_that_is_not_utf8(it: Stack) -> None:
    """A request that gRPC cannot read disturbs nobody."""
    with server(it) as running, closing(Api(running.address)) as api:
        assert answer(api) == "OK"
        for _ in range(3):
            with frames.connect(port_of(running)) as connection:
                connection.sendall(frames.opening(1, b"/\xff"))
                for kind, stream, _ in frames.answers(connection, PATIENCE_S):
                    if (kind, stream) == (frames.RST_STREAM, 1):
                        break
            assert answer(api) == "OK"
            with closing(Api(running.address)) as newcomer:
                assert answer(newcomer) == "OK"


def watchers_of_health(it: Stack) -> None:
    """Without a token a connection has few streams, which are nobody's in the way."""
    with (
        server(it, calls_max=8) as running,
        closing(Api(running.address)) as api,
        frames.connect(port_of(running)) as connection,
    ):
        for stream in range(1, 21, 2):
            connection.sendall(frames.opening(stream, WATCH) + frames.message(stream))
        assert not refused_after(connection, 19), "ten of them"
        assert answer(api) == "OK"
        connection.sendall(frames.opening(21, WATCH) + frames.message(21))
        assert refused_after(connection, 21), "and no more"


def newcomers_where_connections_are_full(it: Stack) -> None:
    """Who has no call makes room for others, and who has one stays, however long it takes."""
    few = {"connections_max": 20, "connection_idle_ms": LONG_MS}
    with (
        mock.patch.object(connections, "RECENT_S", 0.2),
        server(it, **few) as running,
        closing(Api(running.address)) as uploading,
        ExitStack() as held,
    ):
        book = uploading.draft()
        go_on = threading.Event()

        def requests() -> Iterator[codes.ImportCodesRequest]:
            header = codes.ImportHeader(book_id=book.book_id, request_id=unique("upload"))
            yield codes.ImportCodesRequest(header=header)
            go_on.wait(PATIENCE_S)
            chunk = codes.ImportChunk(chunk_number=1, codes=new_codes(3))
            yield codes.ImportCodesRequest(chunk=chunk)

        upload = uploading.codes.ImportCodes(requests())
        for _ in range(100):
            held.enter_context(closing(frames.connect(port_of(running))))
            time.sleep(0.02)
        with closing(Api(running.address)) as newcomer:
            reason = answer(newcomer, wait_for_ready=True)
        go_on.set()
        assert reason == "OK", reason
        assert [answer.created_count for answer in upload] == [3]


def forged_page_tokens(it: Stack) -> None:
    """A page token is one that the service has made, for this query, of a position that it has."""
    api = it.apis[0]
    names = sorted(new_codes(3))
    mine, other = (api.book(codes=some).book_id for some in (names, new_codes(3)))

    def listed(book_id: str, token: str) -> str:
        request = codes.ListCodesRequest(book_id=book_id, page_token=token)
        return tried(lambda: api.codes.ListCodes(request))

    query = codes.ListCodesRequest(book_id=mine)
    secret = it.servers[0].settings.lock_token_secret
    assert secret is not None
    right = PageTokens([secret.get_secret_value().encode()])
    assert listed(mine, right.token(query, names[:1])) == "OK"
    forged = {
        "a token without the key": PageTokens([b""]).token(query, names[:1]),
        "of another query": right.token(codes.ListCodesRequest(book_id=other), names[:1]),
    }
    for what, token in forged.items():
        assert listed(mine, token) == "INVALID_ARGUMENT", what
    locks = redemptions.ListLocksRequest(user_id="user")
    locks.page_token = right.token(locks, names[:1])
    assert tried(lambda: api.redemptions.ListLocks(locks)) == "INVALID_ARGUMENT"


def callers_with_odd_names(it: Stack) -> None:
    """Who a caller is depends on the token, which has one spelling, and on what can be seen."""
    limited = {**ASKED_FOR, "guess_limit_end_users": "10/day"}
    with server(it, **limited) as running:
        with caller(running.address, "self", sub="anonymous", business=unique("business")) as user:
            guesses = [tried(lambda: user.redeem(new_codes(1)[0], "anonymous")) for _ in range(12)]
        assert guesses[-1] == "RATE_LIMITED", guesses
        token = ISSUER.token(sub="service", roles=["admin"], business_id=None)
        for spelling, reason in (token, "OK"), (token + "=", "UNAUTHENTICATED"):
            with closing(Api(running.address, spelling)) as api:
                found = tried(api.draft)
            assert found == reason, found
    api = it.apis[0]
    for user_id in ("\u200b", "\u2060\ufeff", "\u3164"):
        assert tried(lambda name=user_id: api.redeem(api.code(), name)) == "INVALID_ARGUMENT"


def keys_of_a_provider(it: Stack) -> None:
    """Tokens are good as soon as their key is published, and while the provider is away."""
    old, new = Issuer("old", "ES256"), Issuer("new", "EdDSA")
    secret = Issuer("secret")

    def listed(running: ServerThread, issuer: Issuer) -> str:
        with closing(Api(running.address, issuer.token(roles=["admin"], business_id=None))) as api:
            return answer(api)

    with mock.patch.object(key_fetcher, "PAUSE_S", 0.0), key_publisher(old, secret) as publisher:
        settings = {**ASKED_FOR, "jwt_secret": None, "jwt_jwks_url": publisher.url}
        with server(it, **settings) as running:
            assert listed(running, old) == "OK"
            assert listed(running, secret) == "UNAUTHENTICATED"
            publisher.publish(old, new)
            assert listed(running, new) == "OK", "its key is there"
            publisher.status = 503
            assert listed(running, Issuer("unknown", "ES256")) == "UNAUTHENTICATED"
            assert listed(running, old) == "OK", "its key stays"


def bad_target_of_the_metrics_port(_: Stack) -> None:
    """Who asks for what is no URL is told so."""
    with (
        serve_metrics("127.0.0.1", 0, CollectorRegistry(), lambda: True) as metrics,
        socket.create_connection(("127.0.0.1", metrics.port), PATIENCE_S) as connection,
    ):
        connection.sendall(b"GET http://[::1/metrics HTTP/1.0\r\n\r\n")
        assert connection.recv(1_024).startswith(b"HTTP/1.0 400 ")
