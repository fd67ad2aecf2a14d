"""Steps of random programs: codes that are changed many at a time."""

from __future__ import annotations

from typing import Any

from model.draws import PER_MILLE, REQUEST_IDS, any_of, some_of, step
from model.state import Message
from model.using import Using
from support.service import codes

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
