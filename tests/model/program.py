"""What random programs are made of: the same call to the server and to the plain model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any, ClassVar
from unicodedata import normalize
from uuid import UUID, uuid4

import psycopg
from hypothesis.stateful import RuleBasedStateMachine, rule
from model.clock import Clock, identity, service_of
from model.compare import answered, clean, expected
from model.draws import SEEDS, steps_of
from model.erasing import ErasingWorld
from model.state import Item, Message, Token
from support.service import Api, ServerThread

View = tuple[Any, Any, Callable[[], Any]]
"""Something to look at: the method of a stub, what it is asked, and what the model answers."""

composed = partial(normalize, "NFC")
"""A name as it is compared."""

REUSES = 0.12
"""Of the steps of programs whose books get codes of CLOSED ones."""

PATIENCE_S = 60
"""Longer than the service's own deadline: no answer is to depend on who else uses the machine."""


class Program(RuleBasedStateMachine):
    """A server, the plain model of it, and what their calls are made of."""

    server: ClassVar[ServerThread]
    api: ClassVar[Api]
    clock: ClassVar[Clock]
    database: ClassVar[psycopg.Connection[Any]]
    ended: ClassVar[Iterator[int]] = iter(())
    numbers = itertools.count(1)
    shares_codes = False
    """Whether other programs, which are other businesses, have codes of the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = steps_of(type(self))
        self.seed = 0
        self.own = uuid4().hex[:12]
        # Not part of any code: a log may have it.
        self.own_names = uuid4().hex[:12]
        self.clock.begin()
        settings = self.server.settings
        self.world = ErasingWorld(
            now=self.clock.now_ms,
            grace=settings.lock_grace_ms,
            ttl_default=settings.lock_ttl_default_ms,
            ttl_max=settings.lock_ttl_max_ms,
            extensions_max=settings.lock_extensions_max,
            locks_per_user_max=settings.locks_per_user_max,
            reuses=self.shares_codes,
        )
        self.began = self.world.now
        self.business = f"caf\u00e9-{self.own_names}"
        self.book_ids: list[str] = []
        self.rows: list[str] = [
            f"{'samenamehere' if self.shares_codes else self.own}{kind}".upper()
            for kind in ("N0", "N1", "N2", "ÜЯ", "é4")
        ]
        self.history: list[Callable[[], None]] = []
        self.log: list[str] = []
        self.sound = True

    # --- what rules are made of -----------------------------------------------------------------

    def call(
        self, rpc: Callable[..., Any], request: Any, model: Callable[[Any], Any], user: str = ""
    ) -> Any:
        """Makes a call, of an end user or else of a service; the server and the model have to
        agree. It can be repeated later."""
        self.history.append(lambda: self.both(rpc, request, model, user))
        return self.both(rpc, request, model, user)

    def both(
        self, rpc: Callable[..., Any], request: Any, model: Callable[[Any], Any], user: str = ""
    ) -> Any:
        """Asks the server and the model, a millisecond after whatever was before."""
        self.let_pass(1)
        how = {"timeout": PATIENCE_S, "metadata": self.caller_of(user)}
        with self.world.called_by(composed(user)):
            return self.agreed(request, lambda: rpc(request, **how), model)

    def caller_of(self, user: str) -> tuple[tuple[str, bytes], ...]:
        """Who calls: an end user, or a service, of this business or else of all."""
        business = self.spelled(self.business)
        return service_of(business) if self.shares_codes and not user else identity(user, business)

    def look_at(self, *views: View) -> None:
        """The same for what changes nothing, so that all of it can be asked at the same time."""
        self.let_pass(1)
        how = {"timeout": PATIENCE_S, "metadata": self.caller_of("")}
        asked = [rpc.future(request, **how) for rpc, request, _ in views]
        for (_, request, model), answer in zip(views, asked, strict=True):
            self.agreed(request, answer.result, lambda _, model=model: model())

    def let_pass(self, by_ms: int) -> None:
        """Time passes for the server and for the model."""
        self.clock.advance(by_ms)
        self.world.now = self.clock.now_ms

    def agreed(self, request: Any, answer: Callable[[], Any], model: Callable[[Any], Any]) -> Any:
        """What the server answers; the model has to say the same."""
        self.sound = False
        actual = clean(answered(answer))
        wanted = clean(expected(lambda: model(actual)))
        assert actual == wanted, "\n".join(
            ["", *self.log, f"{request}\nis answered\n{actual}\nand should be\n{wanted}"]
        )
        self.sound = True
        return actual

    def fresh(self, request_id: str) -> str:
        """A request_id that was not used before, where one is asked for."""
        return f"n{next(self.numbers)}" if request_id == "new" else request_id

    def user(self, name: str) -> tuple[str, str]:
        """A user of this program, and how it is spelled this time."""
        sent = f"{name}-{self.own_names}"
        return composed(sent), sent

    def spelled(self, name: str) -> str:
        """A name, in one spelling or the other."""
        return normalize("NFD" if self.world.now % 2 else "NFC", name)

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
        known = [key for key, it in self.world.codes.items() if not it.next_book]
        if not known or which >= 980:
            return self.rows[which % 5]
        return known[min(which % len(known), which // 31 % len(known))]  # some more than others

    def typed(self, code: str, which: int) -> str:
        """A code as a person types it."""
        spellings = [
            code,
            code.lower(),
            f" {code[:4]}-{code[4:]}",
            f"{normalize('NFD', code)}\n",
            f"„{code[:3]}%\u200b{code[3:].lower()}“",
        ]
        return spellings[which // 7 % len(spellings)]

    def within(self, code: str, which: int) -> str:
        """A book to name beside a code: none, its own, or another."""
        own = self.world.codes[code].book_id if code in self.world.codes else self.book_ids[0]
        return ["", "", "", own, own, self.book(which)][which % 6]

    def token(self, code: str, user: str, which: int) -> tuple[Token | None, str]:
        """A lock token: none, mostly one that fits, any, or something else."""
        known = [(token, it.value) for token, it in self.world.tokens.items()]
        locks = self.world.locks
        fits = [it for it in known if locks[it[0].lock].message["code"] == code]
        fits = [it for it in fits if user in ("", locks[it[0].lock].whose)]
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
        code, (user, sent) = self.code(which), self.user(drawn["name"])
        token, text = self.token(code, user, drawn["kind"])
        money = {"amount_minor": amount, "currency_code": currency} if currency else None
        book_id = self.within(code, which)
        item = Item(
            code=code,
            user=user,
            book_id=book_id,
            order_id=composed(order_id),
            amount=money,
            token=token,
            request_id=self.fresh(drawn["request_id"]),
        )
        fields = {"code": self.typed(code, which), "user_id": sent, "book_id": book_id}
        fields |= {"order_id": order_id, "order_amount": money, "lock_token": text}
        return item, fields

    def reuse(self, random: Random) -> None:
        """Gives codes of a book to another."""

    @rule(seed=SEEDS)
    def one_step(self, seed: int) -> None:
        """Whatever the seed says; the favourites of Hypothesis say something else each time."""
        random = Random(f"{self.seed} {seed}")
        if self.shares_codes and random.random() < REUSES:
            self.reuse(random)
            return
        (chosen,) = random.choices(self.steps, [it.weight for it in self.steps])
        arguments = chosen.arguments(random)
        self.log.append(f"{chosen.name}({arguments})")
        getattr(self, chosen.name)(**arguments)
