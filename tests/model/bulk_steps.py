"""Steps of random programs: codes that are changed many at a time."""

from __future__ import annotations

from random import Random
from typing import Any

from model.draws import PER_MILLE, REQUEST_IDS, any_of, some_of, step
from model.state import Message
from model.using import Using
from support.service import books, codes

CHANGES = any_of(["DISABLE", "ENABLE", "ENABLE", "DELETE", "REVOKE"])


class BulkSteps(Using):
    """Programs that change codes of a list, or all that match a filter."""

    @step(
        3,
        which=PER_MILLE,
        change=CHANGES,
        named=some_of(PER_MILLE, 1, 4),
        kind=any_of(range(6)),
        request_id=REQUEST_IDS,
        dry=any_of([False, False, True]),
    )
    def change_codes(
        self, which: int, change: str, named: list[int], kind: int, request_id: str, dry: bool
    ) -> None:
        # Not those of single calls: which of both a ledger row is of could not be told.
        book_id, request_id = self.book(which), f"b{self.fresh(request_id) or 'new'}"
        request = codes.ChangeCodesRequest(
            book_id=book_id,
            change=codes.CodeChange.Value(f"CODE_CHANGE_{change}"),
            request_id=request_id,
            validate_only=dry,
        )
        wanted, listed = self.filter(named[0], kind), None
        if not wanted:
            listed = {self.code(it): self.typed(self.code(it), it) for it in named}
            request.list.codes.extend(listed.values())
        else:
            values = dict(wanted)
            if "state" in values:
                values["state"] = f"COUPON_CODE_STATE_{wanted['state']}"
            request.filter.CopyFrom(codes.CodeFilter(**values))
        typed = [(typed, code) for code, typed in listed.items()] if listed else None

        def last(request: Any, **how: Any) -> Any:
            message = list(self.api.codes.ChangeCodes(request, **how))[-1]
            refused = sorted(message.refused, key=lambda it: it.code)
            del message.refused[:]
            message.refused.extend(refused)
            return message

        self.call(
            last,
            request,
            lambda _: self.world.change_codes(book_id, change, typed, wanted, request_id, dry),
        )

    def reuse(self, random: Random) -> None:
        """Closes a book, if it is not, and imports some of its codes into another one."""
        which = random.randrange(len(self.book_ids))
        others = [
            number
            for number, it in enumerate(self.book_ids)
            if number != which and self.world.books[it]["state"] != "CLOSED"
        ]
        codes_of_it = [
            key
            for key, it in self.world.codes.items()
            if it.book_id == self.book_ids[which] and not it.next_book
        ]
        if not others or not codes_of_it:
            return
        self.log.append(f"reuse({which})")
        before = self.book_ids[which]
        if self.world.books[before]["state"] != "CLOSED":
            request_id = self.fresh("new")
            self.call(
                self.api.books.CloseCouponBook,
                books.CloseCouponBookRequest(book_id=before, request_id=request_id),
                lambda _: self.world.move("BOOK_CLOSED", before, "", request_id),
            )
        chosen = random.sample(codes_of_it, min(3, len(codes_of_it)))
        users = [random.choice(["", "", "ann", "bob"]) for _ in chosen]
        self.upload(random.choice(others), chosen, users, random.choice(["new", "new", "r1", "r2"]))

    def upload(self, which: int, names: list[str], users: list[str], request_id: str) -> None:
        """Imports codes of these users into a book."""
        book_id, request_id = self.book_ids[which], self.fresh(request_id)
        more, rows = list[Message](), list[codes.NewCode]()
        for name, user in zip(names, users, strict=True):
            whose, sent = self.user(user) if user else ("", "")
            more.append({"user_id": whose, "sent": sent, "terms": {}})
            rows.append(codes.NewCode(code=name, user_id=sent))
        messages = [
            codes.ImportCodesRequest(
                header=codes.ImportHeader(book_id=book_id, request_id=request_id)
            ),
            codes.ImportCodesRequest(chunk=codes.ImportChunk(chunk_number=1, rows=rows)),
        ]

        def imported(request: Any, **how: Any) -> Any:
            return next(self.api.codes.ImportCodes(iter(request), **how))

        self.call(
            imported,
            messages,
            lambda _: self.world.import_chunk(
                book_id, 1, names, request_id, 0, dry=False, more=more
            ),
        )

    def filter(self, which: int, kind: int) -> Message:
        """A filter, as the ledger has it; empty: none."""
        states = "AVAILABLE", "ASSIGNED", "REDEEMED", "DISABLED"
        uploads = sorted({it.source[1] for it in self.world.codes.values()} - {""})
        wanted: Message = {}
        if kind in (1, 4):
            wanted["state"] = states[which % 4]
        if kind in (2, 4):
            wanted["prefix"] = self.rows[which % 5][: 12 + which % 3]
        if kind == 3 and uploads:
            wanted["upload_request_id"] = uploads[which % len(uploads)] if which < 900 else "none"
        return wanted
