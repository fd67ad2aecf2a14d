"""Any input is answered with a status of the contract, and the service keeps serving."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportArgumentType=false

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil
import pytest
from fuzz.inputs import HOSTILE_TEXTS, Inputs
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from redis import Redis
from support import http2_frames as frames
from support.lease_servers import acquire
from support.proof_sizes import progress, times
from support.service import Api, books, codes
from support.service_process import environment_of, serving
from support.waiting import until

from coupon_service.cli.contract import methods
from coupon_service.errors import LocksUnavailable
from coupon_service.leases import LeaseKey, Leases

MESSAGES = times(2_500, 100_000)
FRAMES = times(150, 5_000)
LUA_CALLS = times(400, 10_000)
IN_FLIGHT = 40
GROWTH_MAX_BYTES = 64 << 20
METHODS = [it for it in methods() if it.containing_service.name != "Health"]
STREAMS = {
    "ImportCodes",
    "GenerateCodes",
    "ExportCodes",
    "ChangeCodes",
    "WatchAuditEvents",
    "EraseUser",
    "VerifyAudit",
}
UNEXPECTED = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


@dataclass(frozen=True)
class Service:
    """A service in its own processes."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    named: dict[str, str]

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return f"127.0.0.1:{self.port}"

    def memory_bytes(self) -> int:
        """The resident memory of all its processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sum(child.memory_info().rss for child in children)

    def assert_serving(self) -> None:
        """Assert that it serves, at the latest after the supervisor has replaced a worker."""
        until(self._redeems)

    def _redeems(self) -> bool:
        assert self.process.poll() is None
        with closing(Api(self.address)) as api:
            try:
                return api.redeem(api.code(), "user").counts.used_up
            except grpc.RpcError:
                return False


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service with a book, codes, a lock and pages."""
    folder = tmp_path_factory.mktemp("fuzz")
    with new_database() as database_url:
        environment = environment_of(database_url, redis_server_url)
        environment |= {"COUPON_WORKERS": "1", "COUPON_LOG_FORMAT": "json"}
        port = int(environment["COUPON_PORT"])
        with (
            serving(environment, folder) as process,
            closing(Api(f"127.0.0.1:{port}")) as api,
        ):
            yield Service(process, port, folder / "log", _known(api))


def _known(api: Api) -> dict[str, str]:
    """Valid ids, codes and tokens, by field."""
    limits = books.BookLimits(max_redemptions_per_code=0)
    optional = books.LOCK_POLICY_OPTIONAL
    book = api.book(codes=["FUZZ1", "FUZZ2", "FUZZ3"], limits=limits, lock_policy=optional)
    held = api.lock("FUZZ1", "user")
    redemption = api.redeem("FUZZ2", "user", order_id="order").redemption
    page = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id, page_size=1))
    return {
        "book_id": book.book_id,
        "business_id": book.business_id,
        "code": "fuzz-2",
        "codes": "FUZZ3",
        "user_id": "user",
        "user_ids": "another",
        "order_id": "order",
        "currency_code": "EUR",
        "lock_token": held.lock_token,
        "lock_id": held.lock.lock_id,
        "redemption_id": redemption.redemption_id,
        "page_token": page.next_page_token,
        "paths": "name",
        "name": "A book",
        "etag": book.etag,
        "separator": "-",
        "alphabet": "ABCDEF",
    }


def test_fuzzed_messages_and_metadata_cause_no_internal_error(service: Service) -> None:
    statuses: dict[str, int] = {}
    calls: deque[tuple[str, int, Any]] = deque()
    memory = 0
    with closing(Api(service.address)) as api:
        for seed in progress("messages", MESSAGES):
            inputs = Inputs(seed, service.named)
            method = METHODS[seed % len(METHODS)]
            path = f"/{method.containing_service.full_name}/{method.name}"
            calls.append((path, seed, _started(api.channel, path, method, inputs)))
            if len(calls) >= IN_FLIGHT:
                _settle(*calls.popleft(), statuses)
            if seed == MESSAGES // 2:
                memory = service.memory_bytes()
        while calls:
            _settle(*calls.popleft(), statuses)
    print(statuses)  # noqa: T201
    assert len(statuses) >= 5, "the messages are too similar"
    assert statuses["OK"] > MESSAGES // 50, "too few messages are valid"
    assert service.memory_bytes() - memory < GROWTH_MAX_BYTES
    service.assert_serving()
    assert b"Traceback" not in service.log.read_bytes()


def _started(channel: grpc.Channel, path: str, method: MethodDescriptor, inputs: Inputs) -> Any:
    kind = GetMessageClass(method.input_type)
    metadata: Any = inputs.metadata()
    options: Any = {"timeout": 10, "metadata": metadata}
    if method.name in STREAMS:
        # A stream of WatchAuditEvents has no other end.
        options["timeout"] = 0.2 if method.name == "WatchAuditEvents" else 1
        sent = [inputs.raw(kind) for _ in range(inputs.random.randint(0, 3))]
        return channel.stream_stream(path)(iter(sent), **options)
    return channel.unary_unary(path).future(inputs.raw(kind), **options)


def _settle(path: str, seed: int, call: Any, statuses: dict[str, int]) -> None:
    with suppress(grpc.RpcError):
        if path.rpartition("/")[2] in STREAMS:
            list(call)
        else:
            call.result()
    code = call.code()
    statuses[code.name] = statuses.get(code.name, 0) + 1
    assert code not in UNEXPECTED, f"{path} with the seed {seed}: {code} {call.details()}"


def test_broken_frames_do_not_stop_the_service(service: Service) -> None:
    memory = service.memory_bytes()
    for seed in progress("connections", FRAMES):
        random = Random(seed)
        with suppress(OSError), frames.connect(service.port, timeout_s=2) as connection:
            for _ in range(random.randint(1, 6)):
                connection.sendall(_broken_frames(random))
            if random.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
    service.assert_serving()
    assert service.memory_bytes() - memory < GROWTH_MAX_BYTES


def _broken_frames(random: Random) -> bytes:
    method = random.choice(METHODS)
    path = f"/{method.containing_service.full_name}/{method.name}"
    stream = random.choice((0, 1, 1, 3, 5, 2, 2**31 - 1))
    whole = frames.opening(stream, path) + frames.message(stream, random.randbytes(20))
    match random.randrange(7):
        case 0:
            return random.randbytes(random.randint(1, 300))
        case 1:
            return frames.frame(random.randrange(256), random.randrange(256), stream, b"x" * 20)
        case 2:
            at = random.randrange(len(whole))
            return whole[:at] + random.randbytes(3) + whole[at + 3 :]
        case 3:
            return whole[: random.randrange(len(whole))]
        case 4:
            return frames.frame(frames.HEADERS, 4, stream, random.randbytes(40))
        case 5:
            return frames.opening(stream, path, [("x" * 50, "y" * random.randint(0, 9_000))])
        case _:
            size = random.choice((0, 1, 16_384, 2**24 - 1))
            return size.to_bytes(3, "big") + bytes([frames.DATA, 1]) + stream.to_bytes(4, "big")


def test_a_path_that_is_not_utf8_costs_a_worker_at_most(service: Service) -> None:
    with suppress(OSError), frames.connect(service.port) as connection:
        entry = b"\0\x05:path\x04/\xff\xfe/"
        block = b"\x83\x86" + entry + b"\0\x02te\x08trailers"
        connection.sendall(frames.frame(frames.HEADERS, 5, 1, block))
        with suppress(OSError):
            connection.recv(100)
    time.sleep(1.5)  # the worker checks its port once a second
    service.assert_serving()


async def test_scripts_accept_any_argument(redis_url: str) -> None:
    leases = Leases(redis_url, timeout_ms=5_000)
    texts = [*HOSTILE_TEXTS, "user", "CODE1"]
    random = Random(1)
    try:
        for _ in range(LUA_CALLS):
            code, book, user, lock = (random.choice(texts) for _ in range(4))
            number = random.choice((0, 1, 1_000, 86_400_000))
            await random.choice(
                [
                    lambda c=code, b=book, u=user, i=lock, n=number: acquire(
                        leases, LeaseKey(c, b, u, i), n, permits_max=n
                    ),
                    lambda c=code, b=book, u=user, i=lock, n=number: leases.admit(
                        LeaseKey(c, b, u, i), n
                    ),
                    lambda c=code, u=user, i=lock, n=number: leases.acquire_transient(c, u, i, n),
                    lambda c=code, u=user, i=lock: leases.peek(c, u, i),
                    lambda c=code, b=book, u=user, i=lock, n=number: leases.release(
                        LeaseKey(c, b, u, i), tombstone_until_ms=n
                    ),
                    lambda c=code, b=book, u=user, i=lock, n=number: leases.extend(
                        LeaseKey(c, b, u, i), n
                    ),
                ]
            )()
        result = await acquire(
            leases, LeaseKey("AFTER", "book", "user", "lock"), 1_000, permits_max=1
        )
        assert result.status.name == "GRANTED"
    except LocksUnavailable as error:
        pytest.fail(f"Redis refused: {error.__cause__!r}")
    finally:
        await asyncio.wait_for(leases.close(), 10)
        with Redis.from_url(redis_url) as client:  # pyright: ignore[reportUnknownMemberType]
            client.flushdb()  # other tests cannot parse these entries
