"""Random programs over every RPC, each step compared with the plain model."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar
from unittest import mock
from uuid import UUID, uuid4

import hypothesis.strategies as st
import psycopg
from adds_up import assert_adds_up
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from model.clock import Clock
from model.compare import answered, clean, expected, plain, refusal
from model.plain import World
from model.told import USES, Item, Message, Token, Unknown
from service import Api, ServerThread, assignments, audit, books, codes, pages, redemptions, struct

SEEDS = st.integers(0, 2**64 - 1)

Draw = Callable[[Random], Any]
"""Makes an argument of a step."""


def any_of(values: Sequence[Any]) -> Draw:
    """One of the values, each as likely."""
    return lambda random: random.choice(values)


def all_of(draws: Mapping[str, Draw]) -> Draw:
    """A value for each name."""
    return lambda random: {name: draw(random) for name, draw in draws.items()}


def some_of(draw: Draw, least: int, most: int) -> Draw:
    """A few values."""
    return lambda random: [draw(random) for _ in range(random.randint(least, most))]


def step(weight: int, **draws: Draw) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a method a step of programs, as frequent as its weight says."""

    def marked(method: Callable[..., None]) -> Callable[..., None]:
        STEPS.append((method.__name__, weight, all_of(draws)))
        return method

    return marked


STEPS: list[tuple[str, int, Draw]] = []
PER_MILLE = any_of(range(1_000))
"""Chooses one of what there is by then."""
REQUEST_IDS = any_of(["new", "new", "new", "", "r1", "r2"])
USERS = any_of(["ann", "bob", "cyd"])
ORDERS = any_of(["", "", "order-1", "order-2"])
METADATA = any_of([{}, {}, {"shop": "x"}])
TTLS = any_of([0, 0, 1_000, 60_000, 60_000, 3_600_000])
WAITS = any_of([1, 1, 900, 900, 1_000, 4_000, 61_000, 300_000])
EUROS = [(amount, "EUR") for amount in (1, 999, 1_000, 1_001, 5_000, 12_345, 99_999)]
AMOUNTS = any_of([(0, ""), (5_000, "USD"), *EUROS, *EUROS])
DISCOUNTS = any_of(
    [
        {"percent_off": {"basis_points": 1_500}},
        {"percent_off": {"basis_points": 3_333, "max_discount_minor": 500}},
        {"amount_off": {"amount_minor": 1_500}},
        {"benefit": {"description": "a gift"}},
    ]
)
LIMITS = all_of(
    {
        "max_redemptions": any_of([0, 0, 0, 0, 4]),
        USES: any_of([1, 2, 2, 3, 3, 0]),
        "max_redemptions_per_user_per_code": any_of([0, 0, 0, 1, 2]),
        "max_redemptions_per_user": any_of([0, 0, 0, 3]),
        "max_assignments_per_user": any_of([0, 0, 0, 1, 2]),
    }
)
FIELDS = {
    "discount": DISCOUNTS,
    "min_order_amount_minor": any_of([0, 0, 0, 1_000]),
    "limits": LIMITS,
    "assignment_policy": any_of(["BEARER"] * 3 + ["REQUIRED"]),
    "lock_policy": any_of(["OPTIONAL"] * 4 + ["REQUIRED", "OFF"]),
    "default_lock_ttl": any_of([0, 5_000]),
    "max_lock_ttl": any_of([0, 20_000]),
    "start_time": any_of([0] * 16 + [2_000]),
    "end_time": any_of([0] * 12 + [300_000, 1_200_000]),
    "assigned_code_validity": any_of([0, 0, 60_000]),
}
BOOKS = all_of(FIELDS)


def CHANGES(random: Random) -> Message:  # noqa: N802 - one of the draws
    """Another value of one field."""
    name = random.choice(list(FIELDS))
    return {name: FIELDS[name](random)}


View = tuple[Callable[[Any], Any], Any, Callable[[], Any]]
ITEM = {
    "which": PER_MILLE,
    "name": USERS,
    "order_id": ORDERS,
    "money": AMOUNTS,
    "kind": any_of(range(12)),
    "request_id": REQUEST_IDS,
}
ITEMS = all_of(ITEM)
TIMES = ("start_time", "end_time")
DURATIONS = ("default_lock_ttl", "max_lock_ttl", "assigned_code_validity")


def book_request(book: Message) -> books.CouponBook:
    """A book of the model as a message."""
    enums = {
        name: getattr(books, f"{name.upper()}_{book[name]}")
        for name in ("assignment_policy", "lock_policy")
        if name in book
    }
    rest = {name: it for name, it in book.items() if name not in (*TIMES, *DURATIONS, *enums)}
    message = books.CouponBook(**rest, **enums)
    for name in (*TIMES, *DURATIONS):
        if book.get(name):
            getattr(message, name).FromMilliseconds(book[name])
    return message


class Programs(RuleBasedStateMachine):
    """One program: a few books, three users, and whatever comes up."""

    server: ClassVar[ServerThread]
    api: ClassVar[Api]
    clock: ClassVar[Clock]
    database: ClassVar[psycopg.Connection[Any]]
    numbers = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        self.own = uuid4().hex[:12]
        self.clock.begin()
        settings = self.server.settings
        self.world = World(
            now=self.clock.now_ms,
            grace=settings.lock_grace_ms,
            ttl_default=settings.lock_ttl_default_ms,
            ttl_max=settings.lock_ttl_max_ms,
            extensions_max=settings.lock_extensions_max,
            locks_per_user_max=settings.locks_per_user_max,
        )
        self.began = self.world.now
        self.book_ids: list[str] = []
        self.rows: list[str] = [f"{self.own}N{n}".upper() for n in range(5)]
        self.history: list[Callable[[], None]] = []
        self.log: list[str] = []
        self.sound = True

    # --- what rules are made of -----------------------------------------------------------------

    def call(self, rpc: Callable[[Any], Any], request: Any, model: Callable[[Any], Any]) -> Any:
        """Makes a call; the server and the model have to agree. It can be repeated later."""
        self.history.append(lambda: self.both(rpc, request, model))
        return self.both(rpc, request, model)

    def both(self, rpc: Callable[[Any], Any], request: Any, model: Callable[[Any], Any]) -> Any:
        """Asks the server and the model."""
        self.clock.advance(1)
        self.world.now = self.clock.now_ms
        self.sound = False
        actual = clean(answered(lambda: rpc(request)))
        wanted = clean(expected(lambda: model(actual)))
        program = "\n".join(self.log)
        assert actual == wanted, (
            f"\n{program}\n{request}\nis answered\n{actual}\nand should be\n{wanted}"
        )
        self.sound = True
        return actual

    def look(self, rpc: Callable[[Any], Any], request: Any, model: Callable[[], Any]) -> None:
        """The same for what changes nothing."""
        self.both(rpc, request, lambda _: model())

    def fresh(self, request_id: str) -> str:
        """A request_id that was not used before, where one is asked for."""
        return f"n{next(self.numbers)}" if request_id == "new" else request_id

    def user(self, name: str) -> str:
        """A user of this program."""
        return f"{name}-{self.own}"

    def book(self, which: int) -> str:
        """A book of this program, or now and then none."""
        return self.book_ids[which % len(self.book_ids)] if which < 980 else str(UUID(int=which))

    def state_of(self, which: int) -> str:
        """The state of a book."""
        return self.world.books.get(self.book(which), {}).get("state", "")

    def etag(self, which: int, kind: int) -> str:
        """An etag to give: none, the right one, or another."""
        version = self.world.books.get(self.book(which), {}).get("etag", 0)
        return f"v{version + kind - 4}" if kind > 3 else ""

    def code(self, which: int) -> str:
        """A code of this program, or a name that is none."""
        known = list(self.world.codes)
        if not known or which >= 980:
            return self.rows[which % 5]
        return known[min(which % len(known), which // 31 % len(known))]  # some more than others

    def typed(self, code: str, which: int) -> str:
        """A code as a person types it."""
        return [code, code, code.lower(), f" {code[:4]}-{code[4:]}"][which % 4]

    def within(self, code: str, which: int) -> str:
        """A book to name beside a code: none, its own, or another."""
        own = self.world.codes[code].book_id if code in self.world.codes else self.book_ids[0]
        return ["", "", "", own, own, self.book(which)][which % 6]

    def token(self, code: str, user: str, which: int) -> tuple[Token | None, str]:
        """A lock token: none, mostly one that fits, any, or something else."""
        known = [(token, it.value) for token, it in self.world.tokens.items()]
        locks = self.world.locks
        fits = [it for it in known if locks[it[0].lock].message["code"] == code]
        fits = [it for it in fits if user in ("", locks[it[0].lock].message["user_id"])]
        if which < 3 or not known or (which < 9 and not fits):
            return None, ""
        if which == 11:
            return Token(-1), known[0][1][:-2] + "xx"
        return fits[-1] if fits and which < 10 else known[which % len(known)]

    def token_of_any(self, which: int, code: int) -> tuple[Token | None, str]:
        """One of the newest tokens, or something else."""
        known = [(token, it.value) for token, it in self.world.tokens.items()][-4:]
        if which < 3 or which == 11 or not known:
            return self.token(self.code(code), "", which)
        return known[code % len(known)]

    def item(self, drawn: Message) -> tuple[Item, dict[str, Any]]:
        """What is to be redeemed, for the model and for the server."""
        which, order_id, (amount, currency) = drawn["which"], drawn["order_id"], drawn["money"]
        code, user = self.code(which), self.user(drawn["name"])
        token, text = self.token(code, user, drawn["kind"])
        money = {"amount_minor": amount, "currency_code": currency} if amount else None
        book_id = self.within(code, which)
        item = Item(
            code=code,
            user=user,
            book_id=book_id,
            order_id=order_id,
            amount=money,
            token=token,
            request_id=self.fresh(drawn["request_id"]),
        )
        fields = {"code": self.typed(code, which), "user_id": user, "book_id": book_id}
        fields |= {"order_id": order_id, "order_amount": money, "lock_token": text}
        return item, fields

    @rule(seed=SEEDS)
    def one_step(self, seed: int) -> None:
        """Whatever the seed says; the favourites of Hypothesis say something else each time."""
        random = Random(f"{self.seed} {seed}")
        ((name, _, draw),) = random.choices(STEPS, [weight for _, weight, _ in STEPS])
        arguments = draw(random)
        self.log.append(f"{name}({arguments})")
        getattr(self, name)(**arguments)

    # --- books and codes ------------------------------------------------------------------------

    @initialize(seed=SEEDS)
    def first_book(self, seed: int) -> None:
        random, self.seed = Random(seed), seed
        book, active = BOOKS(random), random.random() < 0.9
        self.create(book, "EUR", "new" if active else "r1")
        self.import_codes(0, [0, 1, 2], "new", 1)

    @step(2, book=BOOKS, currency=any_of(["EUR", "EUR", ""]), request_id=REQUEST_IDS)
    def create(self, book: Message, currency: str, request_id: str) -> None:
        if len(self.book_ids) == 3:
            return
        money = "benefit" not in book["discount"] or book["min_order_amount_minor"]
        names = {"business_id": f"business-{self.own}", "name": "A book"}
        new: Message = {**book, **names, "currency_code": "EUR" if money else currency}
        for name in TIMES:
            new[name] = new[name] and self.began + new[name]
        request_id = self.fresh(request_id)
        request = books.CreateCouponBookRequest(
            coupon_book=book_request(new), request_id=request_id
        )
        self.call(
            self.api.books.CreateCouponBook, request, lambda _: self.world.create(new, request_id)
        )
        if self.world.created:
            made, self.world.created = self.world.created, None
            book_id = made["book_id"].value
            self.world.books[book_id] = {**made, "book_id": book_id}
            self.book_ids.append(book_id)
            self.import_codes(len(self.book_ids) - 1, [3, 4], "new", 1)
            if request_id[:1] != "r":
                self.move(len(self.book_ids) - 1, "Activate", 0, "new")

    @step(
        3,
        which=PER_MILLE,
        verb=any_of(["Activate", "Pause", "Close"]),
        kind=any_of(range(6)),
        request_id=REQUEST_IDS,
    )
    def move(self, which: int, verb: str, kind: int, request_id: str) -> None:
        if self.state_of(which) in ("DRAFT", "PAUSED") and which % 8:
            verb = "Activate"
        elif which % 3:  # mostly active
            verb = "Pause"
        etag = self.etag(which, kind)
        book_id, request_id = self.book(which), self.fresh(request_id)
        message = getattr(books, f"{verb}CouponBookRequest")
        event = {"Activate": "BOOK_ACTIVATED", "Pause": "BOOK_PAUSED", "Close": "BOOK_CLOSED"}[verb]
        self.call(
            getattr(self.api.books, f"{verb}CouponBook"),
            message(book_id=book_id, etag=etag, request_id=request_id),
            lambda _: self.world.move(event, book_id, etag, request_id),
        )

    @step(4, which=PER_MILLE, changes=CHANGES, kind=any_of(range(6)), request_id=REQUEST_IDS)
    def update(self, which: int, changes: Message, kind: int, request_id: str) -> None:
        etag = self.etag(which, kind)
        book_id, request_id = self.book(which), self.fresh(request_id)
        values = dict(changes)
        for name in TIMES:
            if values.get(name):
                values[name] += self.began
        book = self.world.books.get(book_id)
        after = {**(book or {}), **values}
        money = after.get("min_order_amount_minor") or "benefit" not in after.get("discount", {})
        if book and (
            (money and not book["currency_code"]) or 0 < after["end_time"] <= after["start_time"]
        ):
            return
        if book and "limits" in values and which % 3:
            # Mostly limits that can be changed while the book is active.
            limits, before = dict(values["limits"]), book["limits"]
            limits = {name: it if before[name] else 0 for name, it in limits.items()}
            values["limits"] = {**limits, USES: before[USES]}
        request = books.UpdateCouponBookRequest(
            coupon_book=book_request(values),
            update_mask=FieldMask(paths=list(values)),
            request_id=request_id,
        )
        request.coupon_book.book_id, request.coupon_book.etag = book_id, etag
        self.call(
            self.api.books.UpdateCouponBook,
            request,
            lambda _: self.world.update(book_id, values, etag, request_id),
        )

    @step(
        2,
        which=PER_MILLE,
        rows=some_of(any_of(range(7)), 1, 4),
        request_id=REQUEST_IDS,
        number=any_of(range(1, 3)),
    )
    def import_codes(self, which: int, rows: list[int], request_id: str, number: int) -> None:
        book_id, request_id = self.book(which), self.fresh(request_id) or "r3"
        names = [[*self.rows, "not ü", self.rows[0].lower()][row] for row in rows]
        header = codes.ImportHeader(book_id=book_id, request_id=request_id)
        chunk = codes.ImportChunk(chunk_number=number, codes=names)
        messages = [
            codes.ImportCodesRequest(header=header),
            codes.ImportCodesRequest(chunk=chunk),
        ]
        self.call(
            lambda request: next(self.api.codes.ImportCodes(iter(request))),
            messages,
            lambda _: self.world.import_chunk(book_id, number, names, request_id),
        )

    @step(1, which=PER_MILLE, count=any_of(range(1, 3)), request_id=REQUEST_IDS)
    def generate(self, which: int, count: int, request_id: str) -> None:
        book_id, request_id = self.book(which), self.fresh(request_id)
        if len(self.world.codes) > 8:
            return
        request = codes.GenerateCodesRequest(book_id=book_id, count=count, request_id=request_id)

        def generated(actual: Any) -> Any:
            answer = self.world.generate(book_id, count, request_id)
            if "replayed" not in answer:
                exported = self.api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book_id))
                found = {it.code for message in exported for it in message.codes}
                made = found - self.world.codes.keys()
                assert len(made) == count
                self.world.learn(book_id, made, request_id)
            return answer

        self.call(lambda it: list(self.api.codes.GenerateCodes(it))[-1], request, generated)

    @step(
        3,
        which=PER_MILLE,
        verb=any_of(["Disable", "Enable"]),
        request_id=REQUEST_IDS,
    )
    def switch(self, which: int, verb: str, request_id: str) -> None:
        off = [it.code for it in self.world.codes.values() if it.disabled]
        code, request_id = self.code(which), self.fresh(request_id)
        if off and which % 4:
            code, verb = off[which % len(off)], "Enable"
        kind = getattr(codes, f"{verb}CodeRequest")
        self.call(
            getattr(self.api.codes, f"{verb}Code"),
            kind(code=self.typed(code, which), request_id=request_id),
            lambda _: self.world.switch(f"CODE_{verb.upper()}D", code, request_id),
        )

    # --- assignments ----------------------------------------------------------------------------

    @step(6, which=PER_MILLE, name=USERS, metadata=METADATA, request_id=REQUEST_IDS)
    def assign(self, which: int, name: str, metadata: Message, request_id: str) -> None:
        code, user, request_id = self.code(which), self.user(name), self.fresh(request_id)
        book_id = self.within(code, which)
        request = assignments.AssignCodeRequest(
            code=self.typed(code, which),
            book_id=book_id,
            user_id=user,
            metadata=struct(**metadata),
            request_id=request_id,
        )
        self.call(
            self.api.assignments.AssignCode,
            request,
            lambda _: self.world.assign(code, book_id, user, metadata, request_id),
        )

    @step(4, which=PER_MILLE, name=USERS, metadata=METADATA, request_id=REQUEST_IDS)
    def assign_random(self, which: int, name: str, metadata: Message, request_id: str) -> None:
        book_id, user, request_id = self.book(which), self.user(name), self.fresh(request_id)
        request = assignments.AssignRandomCodeRequest(
            book_id=book_id, user_id=user, metadata=struct(**metadata), request_id=request_id
        )
        self.call(
            self.api.assignments.AssignRandomCode,
            request,
            lambda actual: self.world.assign_random(
                book_id, user, metadata, request_id, actual.get("assignment", {}).get("code", "")
            ),
        )

    @step(
        3,
        which=PER_MILLE,
        names=some_of(USERS, 1, 3),
        request_id=REQUEST_IDS,
    )
    def assign_many(self, which: int, names: list[str], request_id: str) -> None:
        book_id, request_id = self.book(which), self.fresh(request_id)
        users = [self.user(name) for name in dict.fromkeys(names)]
        request = assignments.BatchAssignRandomCodesRequest(
            book_id=book_id, user_ids=users, request_id=request_id
        )

        def given(actual: Any) -> Any:
            results = list[Message]()
            for user, result in zip(users, actual["results"], strict=True):
                picked = result.get("assignment", {}).get("code", "")
                answer = expected(
                    lambda user=user, picked=picked: self.world.assign_random(
                        book_id, user, {}, request_id, picked
                    )
                )
                error = answer.get("refused")
                results.append({"user_id": user, **({"error": error} if error else answer)})
            return {"results": results}

        self.call(self.api.assignments.BatchAssignRandomCodes, request, given)

    @step(4, which=PER_MILLE, name=USERS, request_id=REQUEST_IDS)
    def revoke(self, which: int, name: str, request_id: str) -> None:
        code, user, request_id = self.code(which), self.user(name), self.fresh(request_id)
        if not self.world.links:
            return
        given = [it for it, link in self.world.links.items() if link.state == "ACTIVE"]
        if given and which % 4:
            code, user = given[which % len(given)]
        request = assignments.RevokeAssignmentRequest(
            code=self.typed(code, which), user_id=user, request_id=request_id
        )
        self.call(
            self.api.assignments.RevokeAssignment,
            request,
            lambda _: self.world.revoke(code, user, request_id),
        )

    # --- locks ----------------------------------------------------------------------------------

    @step(14, which=PER_MILLE, name=USERS, ttl=TTLS, metadata=METADATA, request_id=REQUEST_IDS)
    def lock(self, which: int, name: str, ttl: int, metadata: Message, request_id: str) -> None:
        code, user, request_id = self.code(which), self.user(name), self.fresh(request_id)
        book_id = self.within(code, which)
        request = redemptions.LockCodeRequest(
            code=self.typed(code, which),
            book_id=book_id,
            user_id=user,
            metadata=struct(**metadata),
            request_id=request_id,
        )
        if ttl:
            request.ttl.FromMilliseconds(ttl)
        self.call(
            self.api.redemptions.LockCode,
            request,
            lambda _: self.world.lock(code, book_id, user, ttl, metadata, request_id),
        )

    @step(5, which=any_of(range(3, 12)), code=PER_MILLE, ttl=TTLS, request_id=REQUEST_IDS)
    def extend(self, which: int, code: int, ttl: int, request_id: str) -> None:
        token, text = self.token_of_any(which, code)
        if token is None:
            return
        request_id = self.fresh(request_id)
        request = redemptions.ExtendLockRequest(lock_token=text, request_id=request_id)
        if ttl:
            request.ttl.FromMilliseconds(ttl)
        self.call(
            self.api.redemptions.ExtendLock,
            request,
            lambda _: self.world.extend(token, ttl, request_id),
        )

    @step(4, which=any_of(range(1, 12)), code=PER_MILLE, request_id=REQUEST_IDS)
    def unlock(self, which: int, code: int, request_id: str) -> None:
        request_id, locks = self.fresh(request_id), self.world.locks
        request = redemptions.UnlockCodeRequest(request_id=request_id)
        token, text = self.token_of_any(which, code)
        if token is None:
            number = code % len(locks) if locks and code < 980 else -1
            request.lock_id = (
                str(UUID(int=code)) if number < 0 else locks[number].message["lock_id"].value
            )
            reason = "LOCK_NOT_FOUND"
        else:
            request.lock_token, number, reason = text, token.lock, "LOCK_TOKEN_MISMATCH"
        self.call(
            self.api.redemptions.UnlockCode,
            request,
            lambda _: self.world.unlock(number, request_id, reason),
        )

    @step(8, by=WAITS, edge=any_of(range(-1, 6)), which=PER_MILLE)
    def wait(self, by: int, edge: int, which: int) -> None:
        """Lets time pass: so long, or until just before, at or after something ends."""
        world = self.world
        ends = [it.message["expire_time"] for it in world.locks]
        ends += [end + world.grace for end in ends]
        ends += [book[name] for book in world.books.values() for name in TIMES]
        ends += [link.given.get("expire_time", 0) for link in world.links.values()]
        ahead = sorted(it for it in ends if it > world.now + 2)
        if ahead and edge <= 2:
            # The next call comes a millisecond later.
            by = ahead[which % min(3, len(ahead))] - world.now - 1 + min(edge, 1)
        self.clock.advance(by)
        world.now = self.clock.now_ms

    @step(2)
    def sweep(self) -> None:
        sweeper = self.server.server._sweeper
        with mock.patch.object(sweeper._reads, "my_turn", return_value=True):
            self.server.run(sweeper.sweep())
        for book_id in self.book_ids:
            self.world.sweep(book_id)

    # --- redemptions ----------------------------------------------------------------------------

    @step(16, drawn=ITEMS, metadata=METADATA)
    def redeem(self, drawn: Message, metadata: Message) -> None:
        item, fields = self.item(drawn)
        if metadata:
            item = replace(item, metadata=metadata)
            fields["metadata"] = struct(**metadata)
        request = redemptions.RedeemCodeRequest(**fields, request_id=item.request_id)

        def redeemed(_: Any) -> Any:
            (answer,) = self.world.redeem([item])
            return refusal(answer["error"]) if "error" in answer else answer

        self.call(self.api.redemptions.RedeemCode, request, redeemed)

    @step(
        12,
        drawn=some_of(ITEMS, 1, 4),
        mode=any_of(["BEST_EFFORT", "ALL_OR_NOTHING"]),
        request_id=REQUEST_IDS,
    )
    def redeem_many(self, drawn: list[Message], mode: str, request_id: str) -> None:
        made = [self.item({**it, "request_id": it["request_id"] or "new"}) for it in drawn]
        if len({(it.code, it.request_id) for it, _ in made}) < len(made):
            return
        request = redemptions.BatchRedeemCodesRequest(
            items=[
                redemptions.RedeemItem(**fields, request_id=it.request_id) for it, fields in made
            ],
            mode=getattr(redemptions, f"BATCH_MODE_{mode}"),
            request_id=self.fresh(request_id),
        )

        def redeemed(_: Any) -> Any:
            items = [it for it, _ in made]
            results = self.world.redeem(items, atomic=mode == "ALL_OR_NOTHING")
            done = sum("redemption" in it for it in results)
            return {"results": results, "redeemed_count": done}

        self.call(self.api.redemptions.BatchRedeemCodes, request, redeemed)

    @step(8, which=PER_MILLE, metadata=METADATA, request_id=REQUEST_IDS)
    def roll_back(self, which: int, metadata: Message, request_id: str) -> None:
        if not self.world.redemptions:
            return
        known = [it for it in self.world.redemptions if it["state"] == "SUCCEEDED"]
        known = known if known and which % 4 else self.world.redemptions
        which_id = str(UUID(int=which))
        if which < 980:
            which_id = known[which % len(known)]["redemption_id"].value
        request_id = self.fresh(request_id)
        request = redemptions.RollbackRedemptionRequest(
            redemption_id=which_id, metadata=struct(**metadata), request_id=request_id
        )
        self.call(
            self.api.redemptions.RollbackRedemption,
            request,
            lambda _: self.world.rollback(which_id, metadata, request_id),
        )

    # --- repeats and looks ----------------------------------------------------------------------

    @step(8, which=PER_MILLE)
    def repeat(self, which: int) -> None:
        """Sends an earlier request once more."""
        if self.history:
            self.history[-1 - which % len(self.history)]()

    @step(8, drawn=ITEMS)
    def validate(self, drawn: Message) -> None:
        item, fields = self.item(drawn)
        request = redemptions.ValidateCodeRequest(**fields)
        self.look(self.api.redemptions.ValidateCode, request, lambda: self.world.validate(item))

    @step(6, which=PER_MILLE, name=USERS)
    def look_around(self, which: int, name: str) -> None:
        code, book_id = self.code(which), self.book_ids[which % len(self.book_ids)]
        views = [
            (
                self.api.codes.GetCode,
                codes.GetCodeRequest(code=code),
                lambda: {"coupon_code": self.code_of(code)},
            ),
            *self.views_of_book(book_id),
            *self.views_of_user(self.user(name), book_id),
            *map(self.view_of_lock, range(len(self.world.locks))),
        ]
        self.look(*views[which % len(views)])

    def code_of(self, code: str) -> Message:
        """What GetCode answers."""
        self.world.find(code)
        return self.world.code_message(code, locks=True)

    def views_of_book(self, book_id: str) -> list[View]:
        """What there is to see of a book."""
        world, api = self.world, self.api
        return [
            (
                api.books.GetCouponBook,
                books.GetCouponBookRequest(book_id=book_id),
                lambda: {"coupon_book": world.book_message(book_id)},
            ),
            (
                api.books.GetCouponBookStats,
                books.GetCouponBookStatsRequest(book_id=book_id),
                lambda: {"stats": world.stats(book_id)},
            ),
            (
                api.redemptions.ListLocks,
                redemptions.ListLocksRequest(book_id=book_id),
                lambda: {"locks": world.held_messages(book_id=book_id)},
            ),
        ]

    def views_of_user(self, user: str, book_id: str) -> list[View]:
        """What there is to see of a user, of all books or of one."""
        world, api = self.world, self.api
        which = {"user_id": user, **({"book_id": book_id} if book_id else {})}
        return [
            (
                api.assignments.ListUserCoupons,
                assignments.ListUserCouponsRequest(user_id=user, page_size=1_000),
                lambda: {"coupons": world.coupon_messages(user)},
            ),
            (
                api.redemptions.ListLocks,
                redemptions.ListLocksRequest(user_id=user),
                lambda: {"locks": world.held_messages(user_id=user)},
            ),
            (
                api.redemptions.ListRedemptions,
                redemptions.ListRedemptionsRequest(**which, page_size=1_000),
                lambda: {"redemptions": world.redemption_messages(**which)},
            ),
        ]

    def view_of_lock(self, number: int) -> View:
        """A lock by its id."""
        lock_id = self.world.locks[number].message["lock_id"].value
        return (
            self.api.redemptions.GetLock,
            redemptions.GetLockRequest(lock_id=lock_id),
            lambda: {"lock": self.world.lock_message(number)},
        )

    # --- in the end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everything is compared."""
        if not self.sound:
            return
        users = [self.user(name) for name in ("ann", "bob", "cyd")]
        for user in users:
            for view in self.views_of_user(user, ""):
                self.look(*view)
        for book_id in self.book_ids:
            for view in self.views_of_book(book_id):
                self.look(*view)
            self.look_at_all_of(book_id)
        assert_adds_up(self.database, self.book_ids)
        self.database.rollback()

    def look_at_all_of(self, book_id: str) -> None:
        """The codes and the whole ledger of a book, page by page."""
        world = self.world
        mine = sorted(it.code for it in world.codes.values() if it.book_id == book_id)
        request = codes.ListCodesRequest(book_id=book_id, page_size=2)
        listed = pages(self.api.codes.ListCodes, request, "codes")
        found = sorted((it for page in listed for it in page), key=lambda it: it.code)
        assert clean([plain(it) for it in found]) == clean([world.code_message(it) for it in mine])
        wanted = audit.ListAuditEventsRequest(book_id=book_id, page_size=7)
        events = [
            it for page in pages(self.api.audit.ListAuditEvents, wanted, "events") for it in page
        ]
        times = [it.event_time.ToMilliseconds() for it in events]
        assert times == sorted(times, reverse=True)
        told = sorted((clean(plain(it)) for it in events), key=_order)
        ledger = [clean(it) for it in world.ledger if it["book_id"] == book_id]
        for event in ledger:
            event.setdefault("event_id", Unknown())
        assert told == sorted(ledger, key=_order)


def _order(event: Message) -> list[Any]:
    request_id = event["request_id"] if isinstance(event["request_id"], str) else ""
    named = [event.get(key, "") for key in ("type", "code", "user_id")]
    return [event["event_time"], *named, request_id]
