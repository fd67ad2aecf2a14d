"""A continuous load of clients that redeem, lock and roll back during faults.

A client retries a failed call with the same request_id until its outcome is known; one in eight
abandons it instead. `Account` records the outcomes.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import grpc
from grpc import StatusCode
from support.service import Api, Refused, books, new_codes, redemptions, unique

from coupon_service.rpc.abort import DETAILS_KEY

T = TypeVar("T")

CLIENTS: Final = 8
PAUSE_S: Final = 0.04
"""Pause between two visits of a client."""

SHARED_CODES: Final = 300
FRESH_CODES: Final = 6_000
USES_MAX: Final = 2
"""The limit of a code."""

ABANDON_SHARE: Final = 1 / 8

RETRY_S: Final = 60.0
"""Time after which a client stops retrying."""

UNKNOWN: Final = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.CANCELLED,
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
    }
)
RETRIED: Final = UNKNOWN | {StatusCode.ABORTED, StatusCode.RESOURCE_EXHAUSTED}

Lane = Literal["plain", "locking"]


@dataclass(frozen=True, slots=True)
class Seen:
    """One attempt of a call, from the client's view. Times in seconds of the monotonic clock.

    `reason`: from the error's details; empty where gRPC itself failed the call. `own`: no other
    client uses the code. `attempt`: 1, or more for a retry of the same request.
    """

    lane: Lane
    method: str
    sent_s: float
    took_s: float
    status: StatusCode
    reason: str
    advises_retry: bool
    own: bool
    attempt: int

    @property
    def ended_s(self) -> float:
        """The time at which the client got the outcome."""
        return self.sent_s + self.took_s

    @property
    def name(self) -> str:
        """The reason, or the status where there is none."""
        return self.reason or self.status.name


@dataclass(slots=True)
class Account:
    """The outcomes of all clients. Redemption ids by request_id.

    `unknown`: requests with an unknown outcome. A request that is in neither had no effect.
    """

    seen: list[Seen] = field(default_factory=list[Seen])
    redeemed: dict[str, str] = field(default_factory=dict[str, str])
    rolled_back: dict[str, str] = field(default_factory=dict[str, str])
    unknown: set[str] = field(default_factory=set[str])

    def ended_since(self, time_s: float) -> list[Seen]:
        """The attempts that ended since then, the latest first."""
        recent = itertools.takewhile(lambda it: it.ended_s >= time_s, reversed(tuple(self.seen)))
        return list(recent)


class Load:
    """Clients of one address, which run inside `with`, except while it is `paused()`.

    Every other one makes its calls over Checkout streams.

    Its books and codes are created through `api`, so the service has to work at first.
    """

    def __init__(self, api: Api, address: str, seed: int, deadline_s: float) -> None:
        self.account = Account()
        self.deadline_s = deadline_s
        self._channel_address = address
        self._random = random.Random(seed)
        limits = books.BookLimits(
            max_redemptions_per_code=USES_MAX,
            max_redemptions_per_user=1_000_000,
            max_redemptions=1_000_000_000,
        )
        self._shared: dict[Lane, list[str]] = {}
        self._fresh: dict[Lane, Iterator[str]] = {}
        self.book_ids: list[str] = []
        policies: dict[Lane, Any] = {
            "plain": books.LOCK_POLICY_OFF,
            "locking": books.LOCK_POLICY_OPTIONAL,
        }
        for lane, policy in policies.items():
            names = new_codes(SHARED_CODES + FRESH_CODES)
            book = api.book(codes=names, lock_policy=policy, limits=limits)
            self.book_ids.append(book.book_id)
            self._shared[lane], self._fresh[lane] = names[:SHARED_CODES], iter(names[SHARED_CODES:])
        self._running = threading.Event()
        self._stopped = threading.Event()
        self._busy = threading.Semaphore(CLIENTS)
        self._numbers = itertools.count()
        self._threads = [
            threading.Thread(target=self._shop, args=(number % 2,), daemon=True)
            for number in range(CLIENTS)
        ]
        self._failure: BaseException | None = None

    def __enter__(self) -> Load:
        self._running.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._running.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Pause all clients: inside the block no call is in flight."""
        self._running.clear()
        for _ in range(CLIENTS):
            self._busy.acquire()
        try:
            if self._failure is not None:
                raise self._failure
            yield
        finally:
            for _ in range(CLIENTS):
                self._busy.release()
            self._running.set()

    # --- a client -------------------------------------------------------------------------------

    def _shop(self, streamed: int) -> None:
        api = Api(self._channel_address, streamed=streamed)
        try:
            while not self._stopped.is_set():
                self._running.wait()
                with self._busy:
                    if self._running.is_set() and not self._stopped.is_set():
                        self._visit(api)
                time.sleep(PAUSE_S)
        except BaseException as error:  # noqa: BLE001 - the test fails with it
            self._failure = error
        finally:
            api.close()

    def _visit(self, api: Api) -> None:
        """Redeem a code, sometimes with a lock, and sometimes roll the redemption back."""
        number, chance = next(self._numbers), self._random.random
        lane: Lane = "locking" if number % 3 == 0 else "plain"
        fresh = next(self._fresh[lane], None) if chance() < 0.7 else None
        code = fresh or self._random.choice(self._shared[lane])
        abandons = chance() < ABANDON_SHARE

        def settle(method: Callable[..., T], request: Any) -> T | None:
            return self._settle(lane, method, request, own=bool(fresh), abandons=abandons)

        about: dict[str, Any] = {"code": code, "user_id": f"user-{number % 50}"}
        if lane == "locking" and chance() < 0.5:
            about["user_id"] = unique("holder")
            request = redemptions.LockCodeRequest(**about, request_id=unique("lock"))
            request.ttl.FromSeconds(30)
            locked: Any = settle(api.redemptions.LockCode, request)
            if locked is None:
                return
            about["lock_token"] = locked.lock_token
        request = redemptions.RedeemCodeRequest(
            **about, order_id=unique("order"), request_id=unique("redeem")
        )
        done: Any = settle(api.redemptions.RedeemCode, request)
        if done is None:
            return
        self.account.redeemed[request.request_id] = done.redemption.redemption_id
        if chance() < 0.4:
            undo = redemptions.RollbackRedemptionRequest(
                redemption_id=done.redemption.redemption_id, request_id=unique("back")
            )
            if settle(api.redemptions.RollbackRedemption, undo) is not None:
                self.account.rolled_back[undo.request_id] = done.redemption.redemption_id

    def _settle(
        self, lane: Lane, method: Any, request: Any, *, own: bool, abandons: bool
    ) -> Any | None:
        """The answer, or None when the call is refused, or its outcome stays unknown."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        first_s = time.monotonic()
        for attempt in itertools.count(1):
            sent_s = time.monotonic()
            answer, status, reason, advises_retry = None, StatusCode.OK, "", False
            try:
                # A retry waits for a connection, instead of failing without one.
                answer = method(request, timeout=self.deadline_s, wait_for_ready=attempt > 1)
            except grpc.RpcError as error:
                status, reason, advises_retry = outcome_of(error)
            took_s = time.monotonic() - sent_s
            self.account.seen.append(
                Seen(lane, name, sent_s, took_s, status, reason, advises_retry, own, attempt)
            )
            if status is StatusCode.OK:
                self.account.unknown.discard(request.request_id)
                return answer
            if status in UNKNOWN:
                self.account.unknown.add(request.request_id)
            out_of_time = sent_s - first_s > RETRY_S or self._stopped.is_set()
            if status not in RETRIED or out_of_time or abandons:
                return None
            time.sleep(0.1)
        return None


def outcome_of(error: Any) -> tuple[StatusCode, str, bool]:
    """Status, reason, and whether the error has RetryInfo."""
    if not any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ()):
        return error.code(), "", False
    refused = Refused()
    refused.error = error
    return refused.status, refused.reason, refused.retry_after_s is not None
