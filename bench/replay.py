"""Replay of a year of real coupon use through the public API, with a check of the sums.

    python -m bench.replay FOLDER

FOLDER has the files of "The Complete Journey", a year of a grocer's coupon campaigns:
campaigns.csv, coupons.csv and redemptions.csv. Each campaign becomes a book, each coupon a code
`<campaign>-<upc>` that any number of households may use. A household is assigned only the codes
that it redeemed: the 800,000 coupons that were never used would not affect the replay. Then all
households redeem concurrently, each in the order of its year. The validity windows of 2017 are
moved to the present.

With --combinable what a household redeems on a day is one order, of an amount that the data set
does not have: each coupon takes a quarter off, and all of them together no more than the order. It
prints what changes against books that do not mind each other's coupons.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, TypeVar

import grpc.aio
import typer
from rich.console import Console
from rich.table import Table

from bench.loads.complete_journey import Campaign, Redemption, Year, read_year
from bench.servers.stack import BenchError, stack
from coupon_service.cli.client import Service, connect, reason_of
from coupon_service.cli.failure import CommandError
from coupon_service.embedded import EmbeddedError
from coupon_service.v1.assignment_service_pb2 import AssignCodeRequest
from coupon_service.v1.assignment_service_pb2_grpc import AssignmentServiceStub
from coupon_service.v1.audit_service_pb2 import AUDIT_EVENT_TYPE_REDEEMED, ListAuditEventsRequest
from coupon_service.v1.audit_service_pb2_grpc import AuditServiceStub
from coupon_service.v1.coupon_book_service_pb2 import (
    ORDER_POLICY_COMBINABLE,
    ActivateCouponBookRequest,
    Benefit,
    BookLimits,
    CouponBook,
    CouponBookStats,
    CreateCouponBookRequest,
    Discount,
    GetCouponBookStatsRequest,
)
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub
from coupon_service.v1.coupon_code_service_pb2 import ImportChunk, ImportCodesRequest, ImportHeader
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub
from coupon_service.v1.redemption_service_pb2 import RedeemCodeRequest
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

Item = TypeVar("Item")

PAGE_SIZE: Final = 1_000
GROCER: Final = "grocer"
"""The business that the replayed campaigns are of."""

ORDER_MINOR: Final = 2_000
QUARTER_BASIS_POINTS: Final = 2_500


@dataclass(slots=True)
class Result:
    """The answers of the service, and its ledger and counters afterwards. Redemptions by campaign.

    `discount_minor`: what all redemptions took off.
    """

    seconds: float = 0.0
    accepted: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: Counter[str] = field(default_factory=Counter[str])
    ledger: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    counters: dict[str, int] = field(default_factory=dict[str, int])
    discount_minor: int = 0

    def answers(self) -> Counter[str]:
        """How many redemptions were accepted (OK), and refused for which reason."""
        return Counter({"OK": sum(map(len, self.accepted.values())), **self.refused})

    def sums_hold(self) -> bool:
        """Whether accepted redemptions, ledger and counters agree for each campaign."""
        return all(
            self.accepted[campaign] == found and len(found) == self.counters[campaign]
            for campaign, found in self.ledger.items()
        )


class Replay:
    """One replay against one service. Unique ids keep it apart from other replays."""

    def __init__(
        self, year: Year, service: Service, per_user: int, clients: int, *, combinable: bool
    ) -> None:
        self._combinable = combinable
        self._year = year
        self._service = service
        self._per_user = per_user
        self._clients = clients
        self._run = uuid.uuid4().hex[:12]
        self._books = CouponBookServiceStub(service.channel)
        self._codes = CouponCodeServiceStub(service.channel)
        self._assignments = AssignmentServiceStub(service.channel)
        self._redemptions = RedemptionServiceStub(service.channel)
        self._audit = AuditServiceStub(service.channel)

    async def run(self) -> Result:
        """Run the whole replay. Raises CommandError when the service already has the codes."""
        result = Result()
        book_ids = {it.campaign_id: await self._open(it) for it in self._year.campaigns}
        await self._concurrently(self._year.assignments(), self._assign)
        households: defaultdict[str, list[Redemption]] = defaultdict(list)
        for redemption in self._year.redemptions:
            households[redemption.household].append(redemption)

        async def redeem_in_order(redemptions: list[Redemption]) -> None:
            for redemption in redemptions:
                await self._redeem(redemption, result)

        started = time.perf_counter()
        await self._concurrently(households.values(), redeem_in_order)
        result.seconds = time.perf_counter() - started
        for campaign_id, book_id in book_ids.items():
            result.ledger[campaign_id] = await self._redemptions_in_ledger(book_id)
            stats = await self._stats(book_id)
            result.counters[campaign_id] = stats.redemption_count
            result.discount_minor += stats.discount_given.amount_minor
        return result

    async def _concurrently(
        self, items: Iterable[Item], work: Callable[[Item], Awaitable[None]]
    ) -> None:
        """Work on all items, with as many at a time as there are clients."""
        waiting = deque(items)

        async def client() -> None:
            while waiting:
                await work(waiting.popleft())

        await asyncio.gather(*(client() for _ in range(self._clients)))

    async def _open(self, campaign: Campaign) -> str:
        """Create an active book with the codes of the campaign; returns its id."""
        start = datetime.now(UTC) - timedelta(hours=1)
        book = CouponBook(
            business_id=GROCER,
            name=f"Campaign {campaign.campaign_id} ({campaign.kind})",
            discount=Discount(benefit=Benefit(description="As printed on the coupon")),
            limits=BookLimits(
                max_redemptions_per_code=0, max_redemptions_per_user_per_code=self._per_user
            ),
        )
        if self._combinable:
            book.discount.percent_off.basis_points = QUARTER_BASIS_POINTS
            book.currency_code = "USD"
            book.order_policy = ORDER_POLICY_COMBINABLE
        book.start_time.FromDatetime(start)
        book.end_time.FromDatetime(start + campaign.duration + timedelta(days=1))
        request_id = f"replay-{self._run}-{campaign.campaign_id}"
        created = await self._books.CreateCouponBook(
            CreateCouponBookRequest(coupon_book=book, request_id=request_id)
        )
        book_id = created.coupon_book.book_id
        messages = (
            ImportCodesRequest(header=ImportHeader(book_id=book_id, request_id=request_id)),
            ImportCodesRequest(chunk=ImportChunk(chunk_number=1, codes=campaign.codes)),
        )
        async for answer in self._codes.ImportCodes(iter(messages)):
            if answer.created_count < len(campaign.codes):
                raise CommandError(
                    "The service already has codes of this data set, and a code cannot be in two"
                    " books: replay it to another service."
                )
        await self._books.ActivateCouponBook(
            ActivateCouponBookRequest(book_id=book_id, request_id=request_id)
        )
        return book_id

    async def _assign(self, assignment: tuple[str, str]) -> None:
        code, household = assignment
        await self._assignments.AssignCode(
            AssignCodeRequest(
                code=code,
                user_id=household,
                business_id=GROCER,
                request_id=f"replay-{self._run}-{household}",
            )
        )

    async def _redeem(self, redemption: Redemption, result: Result) -> None:
        request_id = f"replay-{self._run}-{redemption.number}"
        request = RedeemCodeRequest(
            code=redemption.code,
            user_id=redemption.household,
            business_id=GROCER,
            order_id=f"{self._run}-{redemption.number}",
            request_id=request_id,
        )
        if self._combinable:
            request.order_id = f"{self._run}-{redemption.household}-{redemption.day}"
            request.order_amount.amount_minor = ORDER_MINOR
            request.order_amount.currency_code = "USD"
        request.metadata.update({"day": redemption.day.isoformat()})
        try:
            await self._redemptions.RedeemCode(request)
        except grpc.aio.AioRpcError as error:
            result.refused[reason_of(error)] += 1
        else:
            result.accepted[redemption.campaign_id].add(request_id)

    async def _redemptions_in_ledger(self, book_id: str) -> set[str]:
        request = ListAuditEventsRequest(
            book_id=book_id, types=[AUDIT_EVENT_TYPE_REDEEMED], page_size=PAGE_SIZE
        )
        found: list[str] = []
        while True:
            page = await self._audit.ListAuditEvents(request)
            found += [event.request_id for event in page.events]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if len(found) != len(set(found)):
            raise CommandError(f"The ledger of book {book_id} has the same redemption twice.")
        return set(found)

    async def _stats(self, book_id: str) -> CouponBookStats:
        answer = await self._books.GetCouponBookStats(GetCouponBookStatsRequest(book_id=book_id))
        return answer.stats


def main(
    data: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the data set.")],
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A running service. Default: a private one, with empty servers.",
            show_default=False,
        ),
    ] = None,
    per_user: Annotated[
        int, typer.Option(min=1, help="Redemptions of a code by one household at most.")
    ] = 1,
    clients: Annotated[int, typer.Option(min=1, help="Calls in flight.")] = 64,
    combinable: Annotated[
        bool, typer.Option("--combinable", help="What a household redeems on a day is one order.")
    ] = False,
) -> None:
    """Replay a year of real coupon use, and check the sums."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the servers, as Ctrl-C does
    try:
        year = read_year(data)
        with _own_service() if address is None else nullcontext(address) as target:
            result = asyncio.run(_replay(year, target, per_user, clients, combinable=combinable))
    except (BenchError, CommandError, EmbeddedError) as error:
        sys.exit(str(error))
    expected = year.answers(per_user, combinable=combinable)
    Console().print(_table(year, result, expected["OK"]))
    if not result.sums_hold():
        sys.exit("The ledger or the counters differ from the accepted redemptions.")
    if result.answers() != expected:
        sys.exit(f"Some redemptions were not answered according to the limits: {expected}.")
    if combinable:
        before = year.answers(per_user, combinable=False)
        Console().print(_changes(year, before, result))
        if result.discount_minor != expected["OK"] * _quarter_minor():
            sys.exit("The discounts differ from the accepted redemptions.")


async def _replay(
    year: Year, address: str, per_user: int, clients: int, *, combinable: bool
) -> Result:
    async with connect(address, retries=True) as service:
        return await Replay(year, service, per_user, clients, combinable=combinable).run()


def _quarter_minor() -> int:
    return ORDER_MINOR * QUARTER_BASIS_POINTS // 10_000


@contextmanager
def _own_service() -> Generator[str]:
    """The address of a private service with empty servers."""
    with stack(workers=1) as servers, servers.service(auth="none", log_level="warning") as server:
        yield server.address


def _table(year: Year, result: Result, acceptable: int) -> Table:
    accepted = sum(map(len, result.accepted.values()))
    table = Table("", "Count", title=f"{len(year.campaigns)} campaigns", title_justify="left")
    table.columns[1].justify = "right"
    rows: list[tuple[str, float]] = [
        ("Codes", sum(len(campaign.codes) for campaign in year.campaigns)),
        ("Assignments", len(year.assignments())),
        ("Redemptions requested", len(year.redemptions)),
        ("  within the limit", acceptable),
        ("Accepted", accepted),
        *((f"Refused: {reason}", count) for reason, count in result.refused.most_common()),
        ("In the ledger", sum(map(len, result.ledger.values()))),
        ("In the counters", sum(result.counters.values())),
        ("Answers per second", len(year.redemptions) // result.seconds),
    ]
    for name, count in rows:
        table.add_row(name, f"{count:,.0f}")
    return table


def _changes(year: Year, before: Counter[str], result: Result) -> Table:
    """What COMBINABLE orders change. `before`: the answers where each coupon has its own order."""
    title = f"{year.orders():,} orders of {ORDER_MINOR / 100:.2f}, a quarter off each coupon"
    table = Table("", "Independent", "Combinable", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    now = result.answers()
    given = (before["OK"] * _quarter_minor() / 100, result.discount_minor / 100)
    table.add_row("Accepted", f"{before['OK']:,}", f"{now['OK']:,}")
    table.add_row("Taken off", *(f"{it:,.2f}" for it in given))
    for reason in result.refused:
        table.add_row(f"Refused: {reason}", f"{before[reason]:,}", f"{now[reason]:,}")
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
