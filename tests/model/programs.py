"""Random programs over every RPC, each step compared with the plain model."""

from __future__ import annotations

from functools import partial
from typing import Any

from model.compare import clean, plain
from model.draws import ALONE, ITEMS, PER_MILLE, USERS, some_of, step
from model.erasing_steps import ErasingSteps
from model.program import PATIENCE_S, View
from model.state import Message, Unknown
from support.invariants import assert_adds_up
from support.service import assignments, audit, books, codes, pages, redemptions


class Programs(ErasingSteps):
    """One program: a few books, three users, and whatever comes up."""

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
        user = fields["user_id"] if drawn["alone"] else ""
        self.both(
            self.api.redemptions.ValidateCode,
            request,
            lambda _: self.world.validate(item),
            user,
        )

    @step(6, name=USERS, drawn=some_of(ITEMS, 1, 3), alone=ALONE)
    def qualify(self, name: str, drawn: list[Message], *, alone: bool) -> None:
        """Tries all that a user has, and a few other codes, for the order of the first of these."""
        (user, sent), made = self.user(name), [self.item(it) for it in drawn]
        order, fields = made[0]
        request = redemptions.QualifyCouponsRequest(
            user_id=sent,
            codes=[it["code"] for _, it in made],
            order_id=fields["order_id"],
            order_amount=fields["order_amount"],
        )
        named = [(it.code, fields["code"]) for it, fields in made]
        self.both(
            self.api.redemptions.QualifyCoupons,
            request,
            lambda _: self.world.qualify(user, named, order),
            sent if alone else "",
        )

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
            *self.views_of_user(*self.user(name), book_id),
            *map(self.view_of_lock, range(len(self.world.locks))),
        ]
        self.look_at(views[which % len(views)])

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
            (
                api.assignments.ListAssignments,
                assignments.ListAssignmentsRequest(book_id=book_id, page_size=1_000),
                lambda: {"assignments": world.assignment_messages(book_id)},
            ),
            (
                api.assignments.ListAssignments,
                assignments.ListAssignmentsRequest(
                    book_id=book_id, state=assignments.ASSIGNMENT_STATE_REVOKED
                ),
                lambda: {"assignments": world.assignment_messages(book_id, "REVOKED")},
            ),
            (
                api.redemptions.ListRedemptions,
                redemptions.ListRedemptionsRequest(
                    business_id=self.spelled(self.business), page_size=1_000
                ),
                lambda: {"redemptions": world.redemption_messages()},
            ),
        ]

    def views_of_user(self, user: str, sent: str, book_id: str) -> list[View]:
        """What there is to see of a user, spelled like this, of all books or of one."""
        world, api = self.world, self.api
        of_book = {"book_id": book_id} if book_id else {}
        which = {"user_id": user, **of_book}
        return [
            (
                api.assignments.ListUserCoupons,
                assignments.ListUserCouponsRequest(user_id=sent, page_size=1_000),
                lambda: {"coupons": world.coupon_messages(user)},
            ),
            (
                api.redemptions.ListLocks,
                redemptions.ListLocksRequest(user_id=sent),
                lambda: {"locks": world.held_messages(user_id=user)},
            ),
            (
                api.redemptions.ListRedemptions,
                redemptions.ListRedemptionsRequest(user_id=sent, book_id=book_id, page_size=1_000),
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
        next(self.ended, None)
        users = [self.user(name) for name in ("ann", "bob", "jos\u00e9")]
        self.look_at(
            *(view for user in users for view in self.views_of_user(*user, "")),
            *(view for book_id in self.book_ids for view in self.views_of_book(book_id)),
        )
        for book_id in self.book_ids:
            self.look_at_all_of(book_id)
        assert_adds_up(self.database, self.book_ids)

    def look_at_all_of(self, book_id: str) -> None:
        """The codes and the whole ledger of a book, page by page, of another size each time."""
        world = self.world
        mine = sorted(key for key, it in world.codes.items() if it.book_id == book_id)
        request = codes.ListCodesRequest(book_id=book_id, page_size=2 + self.seed % 7)
        listed = pages(patiently(self.api.codes.ListCodes), request, "codes")
        found = sorted((it for page in listed for it in page), key=lambda it: it.code)
        assert clean([plain(it) for it in found]) == clean([world.code_message(it) for it in mine])
        wanted = audit.ListAuditEventsRequest(book_id=book_id, page_size=7 + self.seed % 40)
        written = pages(patiently(self.api.audit.ListAuditEvents), wanted, "events")
        events = [it for page in written for it in page]
        times = [it.event_time.ToMilliseconds() for it in events]
        assert times == sorted(times, reverse=True)
        found_events = sorted((clean(plain(it)) for it in events), key=_order)
        ledger = [clean(it) for it in world.ledger if it["book_id"] == book_id]
        for event in ledger:
            event.setdefault("event_id", Unknown())
        assert found_events == sorted(ledger, key=_order)


def patiently(rpc: Any) -> Any:
    """The method of a stub, with a deadline that nobody comes near."""
    return partial(rpc, timeout=PATIENCE_S)


def _order(event: Message) -> list[Any]:
    request_id = event["request_id"] if isinstance(event["request_id"], str) else ""
    named = [event.get(key, "") for key in ("type", "code", "user_id", "order_id")]
    lock_id = event.get("lock_id", "")  # several locks of a user can expire in one sweep
    lock = lock_id.value if isinstance(lock_id, Unknown) else lock_id
    return [event["event_time"], *named, request_id, lock or ""]
