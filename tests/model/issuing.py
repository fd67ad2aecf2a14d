"""Steps of random programs: books, codes and assignments."""

from __future__ import annotations

from random import Random
from typing import Any
from unicodedata import normalize

from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis.stateful import initialize
from model.compare import expected
from model.draws import (
    BOOKS,
    CHANGES,
    DURATIONS,
    LENGTHS,
    METADATA,
    NEW_CODES,
    PER_MILLE,
    REQUEST_IDS,
    SEEDS,
    TIMES,
    USERS,
    any_of,
    some_of,
    step,
)
from model.opening_hours import around
from model.program import Program
from model.state import USES, Message
from support.service import assignments, books, codes, struct

ON_ORDERS = "max_redemptions_per_order"


def terms_request(terms: Message) -> codes.CodeTerms:
    """What a code says for itself, to be sent."""
    made = codes.CodeTerms(
        **{key: it for key, it in terms.items() if key not in (*TIMES, "metadata")},
        metadata=struct(**terms["metadata"]) if "metadata" in terms else None,
    )
    for time in TIMES:
        if time in terms:
            getattr(made, time).FromMilliseconds(terms[time])
    return made


class Issuing(Program):
    """Programs that make books and codes, and assign them to users."""

    # --- books and codes ------------------------------------------------------------------------

    @initialize(seed=SEEDS)
    def first_book(self, seed: int) -> None:
        random, self.seed = Random(seed), seed
        book, active = BOOKS(random), random.random() < 0.9
        self.create(book, "EUR", "new" if active else "r1")
        self.import_codes(0, [0, 1, 2], "new", 1, least=3, dry=False)

    @step(2, book=BOOKS, currency=any_of(["EUR", "EUR", ""]), request_id=REQUEST_IDS)
    def create(self, book: Message, currency: str, request_id: str) -> None:
        if len(self.book_ids) == (6 if self.shares_codes else 3):
            return
        money = "benefit" not in book["discount"] or book["min_order_amount_minor"]
        names = {"business_id": self.business, "name": "A book"}
        new: Message = {**book, **names, "currency_code": "EUR" if money else currency}
        for name in TIMES:
            new[name] = new[name] and self.began + new[name]
        new["schedule"] = new["schedule"] and around(self.began, **new["schedule"])
        request_id = self.fresh(request_id)
        request = books.CreateCouponBookRequest(
            coupon_book=book_request(new), request_id=request_id
        )
        request.coupon_book.business_id = self.spelled(self.business)
        self.call(
            self.api.books.CreateCouponBook, request, lambda _: self.world.create(new, request_id)
        )
        if self.world.created:
            made, self.world.created = self.world.created, None
            book_id = made["book_id"].value
            self.world.books[book_id] = {**made, "book_id": book_id}
            self.book_ids.append(book_id)
            self.import_codes(len(self.book_ids) - 1, [3, 4], "new", 1, least=3, dry=False)
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
        if values.get("schedule"):
            values["schedule"] = around(self.began, **values["schedule"])
        book = self.world.books.get(book_id)
        after = {**(book or {}), **values}
        money = after.get("min_order_amount_minor") or "benefit" not in after.get("discount", {})
        if book and (
            (money and not book["currency_code"]) or 0 < after["end_time"] <= after["start_time"]
        ):
            return
        if after.get("return_to_pool") and after.get("assignment_policy") == "BEARER":
            return
        budget = after.get("limits", {}).get("max_discount_minor")
        if budget and "benefit" in after.get("discount", {}):
            return
        bound = after.get("exclusive_group") or after.get("limits", {}).get(ON_ORDERS)
        if bound and after.get("order_policy") == "INDEPENDENT":
            return
        if book and "limits" in values and which % 3:
            # Mostly limits that can be changed while the book is active.
            limits, before = dict(values["limits"]), book["limits"]
            limits = {
                name: it if before[name] or name == ON_ORDERS else 0 for name, it in limits.items()
            }
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
        rows=some_of(any_of(range(10)), 1, 4),
        request_id=REQUEST_IDS,
        number=any_of(range(1, 3)),
        least=LENGTHS,
        dry=any_of([False, False, True]),
    )
    def import_codes(
        self, which: int, rows: list[int], request_id: str, number: int, least: int, dry: bool
    ) -> None:
        book_id, request_id = self.book(which), self.fresh(request_id) or "r3"
        spelled = [self.rows[0].lower(), normalize("NFD", self.rows[3])]
        names = [[*self.rows, "no / code", "1,23E+12", "600519.0", *spelled][row] for row in rows]
        header = codes.ImportHeader(
            book_id=book_id, request_id=request_id, min_code_length=least, validate_only=dry
        )
        chunk = codes.ImportChunk(chunk_number=number, codes=names)
        messages = [
            codes.ImportCodesRequest(header=header),
            codes.ImportCodesRequest(chunk=chunk),
        ]

        def imported(request: Any, **how: Any) -> Any:
            return next(self.api.codes.ImportCodes(iter(request), **how))

        self.call(
            imported,
            messages,
            lambda _: self.world.import_chunk(book_id, number, names, request_id, least, dry),
        )

    @step(
        3,
        which=PER_MILLE,
        drawn=some_of(NEW_CODES, 1, 4),
        request_id=REQUEST_IDS,
        number=any_of(range(1, 3)),
        dry=any_of([False, False, True]),
    )
    def import_with_terms(
        self, which: int, drawn: list[Message], request_id: str, number: int, dry: bool
    ) -> None:
        book_id, request_id = self.book(which), self.fresh(request_id) or "r3"
        names: list[str] = [[*self.rows, "no / code"][it["row"]] for it in drawn]
        more, rows = list[Message](), list[codes.NewCode]()
        for name, it in zip(names, drawn, strict=True):
            user, sent = self.user(it["name"]) if it["name"] else ("", "")
            terms = {key: value for key, value in it["terms"].items() if value}
            for time in TIMES:
                if time in terms:
                    terms[time] += self.began
            more.append({"user_id": user, "sent": sent, "terms": terms})
            rows.append(codes.NewCode(code=name, user_id=sent, terms=terms_request(terms)))
        header = codes.ImportHeader(book_id=book_id, request_id=request_id, validate_only=dry)
        chunk = codes.ImportChunk(chunk_number=number, rows=rows)
        messages = [
            codes.ImportCodesRequest(header=header),
            codes.ImportCodesRequest(chunk=chunk),
        ]

        def imported(request: Any, **how: Any) -> Any:
            return next(self.api.codes.ImportCodes(iter(request), **how))

        self.call(
            imported,
            messages,
            lambda _: self.world.import_chunk(book_id, number, names, request_id, 0, dry, more),
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

        def last(request: Any, **how: Any) -> Any:
            return list(self.api.codes.GenerateCodes(request, **how))[-1]

        self.call(last, request, generated)

    @step(
        3,
        which=PER_MILLE,
        verb=any_of(["Disable", "Enable"]),
        request_id=REQUEST_IDS,
    )
    def set_enabled(self, which: int, verb: str, request_id: str) -> None:
        off = [it.code for it in self.world.codes.values() if it.disabled]
        code, request_id = self.code(which), self.fresh(request_id)
        if off and which % 4:
            code, verb = off[which % len(off)], "Enable"
        kind = getattr(codes, f"{verb}CodeRequest")
        self.call(
            getattr(self.api.codes, f"{verb}Code"),
            kind(code=self.typed(code, which), request_id=request_id),
            lambda _: self.world.set_enabled(f"CODE_{verb.upper()}D", code, request_id),
        )

    # --- assignments ----------------------------------------------------------------------------

    @step(6, which=PER_MILLE, name=USERS, metadata=METADATA, request_id=REQUEST_IDS)
    def assign(self, which: int, name: str, metadata: Message, request_id: str) -> None:
        code, (user, sent) = self.code(which), self.user(name)
        book_id, request_id = self.within(code, which), self.fresh(request_id)
        request = assignments.AssignCodeRequest(
            code=self.typed(code, which),
            book_id=book_id,
            user_id=sent,
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
        book_id, (user, sent) = self.book(which), self.user(name)
        request_id = self.fresh(request_id)
        request = assignments.AssignRandomCodeRequest(
            book_id=book_id, user_id=sent, metadata=struct(**metadata), request_id=request_id
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
        users = dict(map(self.user, names))
        request = assignments.BatchAssignRandomCodesRequest(
            book_id=book_id, user_ids=users.values(), request_id=request_id
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
        code, (user, sent) = self.code(which), self.user(name)
        request_id = self.fresh(request_id)
        if not self.world.assignments:
            return
        assigned = [key for key, it in self.world.assignments.items() if it.state == "ACTIVE"]
        if assigned and which % 4:
            key, user = assigned[which % len(assigned)]
            code = self.world.codes[key].code
            sent = self.spelled(user)
        request = assignments.RevokeAssignmentRequest(
            code=self.typed(code, which), user_id=sent, request_id=request_id
        )
        self.call(
            self.api.assignments.RevokeAssignment,
            request,
            lambda _: self.world.revoke(code, user, request_id),
        )

    @step(
        5,
        which=PER_MILLE,
        name=USERS,
        kind=any_of(range(12)),
        metadata=METADATA,
        request_id=REQUEST_IDS,
    )
    def transfer(
        self, which: int, name: str, kind: int, metadata: Message, request_id: str
    ) -> None:
        code, (giver, sent), request_id = self.code(which), self.user("ann"), self.fresh(request_id)
        assigned = [key for key, it in self.world.assignments.items() if it.state]
        live = [key for key in assigned if self.world.assignments[key].state == "ACTIVE"]
        if assigned and which % 8:
            known = live if live and which % 4 else assigned
            key, giver = known[which % len(known)]
            code = self.world.codes[key].code
            sent = self.spelled(giver)
        receiver, spelled = self.user(name)
        if receiver == giver or giver in self.world.erased_users:  # whom nobody can name
            return
        (token, text), book_id = self.token(code, giver, kind), self.within(code, which)
        request = assignments.TransferAssignmentRequest(
            code=self.typed(code, which),
            book_id=book_id,
            from_user_id=sent,
            to_user_id=spelled,
            lock_token=text,
            metadata=struct(**metadata),
            request_id=request_id,
        )
        self.call(
            self.api.assignments.TransferAssignment,
            request,
            lambda _: self.world.transfer(
                code, book_id, giver, receiver, token, metadata, request_id
            ),
        )


def book_request(book: Message) -> books.CouponBook:
    """A book of the model as a message."""
    enums = {
        name: getattr(books, f"{name.upper()}_{book[name]}")
        for name in ("assignment_policy", "lock_policy", "order_policy")
        if name in book
    }
    other = (*TIMES, *DURATIONS, *enums, "schedule", "period_limits")
    rest = {name: it for name, it in book.items() if name not in other}
    message = books.CouponBook(**rest, **enums)
    if limits := book.get("period_limits"):
        fields: Message = {**limits, "period": f"PERIOD_{limits['period']}"}
        message.period_limits.CopyFrom(books.PeriodLimits(**fields))
    if hours := book.get("schedule"):
        message.schedule.time_zone = hours["time_zone"]
        for window in hours["windows"]:
            days = [f"WEEKDAY_{it}" for it in window["days"]]
            message.schedule.windows.add(**{**window, "days": days})
    for name in (*TIMES, *DURATIONS):
        if book.get(name):
            getattr(message, name).FromMilliseconds(book[name])
    return message
