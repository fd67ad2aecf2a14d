"""The plain model, with orders of redemptions that get another amount."""

from __future__ import annotations

from model.assignments import iso
from model.plain import World, rolled_back
from model.state import Message, Refusal


class AdjustingWorld(World):
    """All of it."""

    def adjust(
        self, redemption_id: str, amount: Message, etag: str, metadata: Message, request_id: str
    ) -> Message:
        """AdjustRedemption."""
        found = [it for it in self.redemptions if it["redemption_id"].value == redemption_id]
        if not found:
            raise Refusal("REDEMPTION_NOT_FOUND")
        (redemption,) = found
        key = "ADJUSTED", redemption_id, request_id
        parameters = amount["amount_minor"], amount["currency_code"], etag, metadata
        if again := self.once(key, parameters, None):
            return again
        if redemption["state"] == "ROLLED_BACK":
            raise rolled_back(redemption)
        if etag not in ("", redemption["etag"]):
            raise Refusal("CONCURRENT_MODIFICATION")
        terms = redemption["_terms"]
        currency = self._check(redemption, amount)
        discount = None
        if "benefit" not in terms["discount"]:
            discount = self.own_discount(terms, amount)
            if discount is None or amount["amount_minor"] < terms["min_order_amount_minor"]:
                discount = {"amount_minor": 0, "currency_code": currency}
        if discount is not None:
            discount = self._beside_others(redemption, amount, discount)
        self._check_budget(redemption, discount)
        number = int(redemption["etag"][1:]) + 1
        redemption |= {"order_amount": amount, "discount": discount, "etag": f"a{number}"}
        about = {key: redemption[key] for key in ("user_id", "order_id", "redemption_id")}
        about |= {"order_amount": amount, "discount": discount, "metadata": metadata}
        code = redemption["code"]
        self.code_event("ADJUSTED", code, self.state(code), request_id, **about)

        def still(it: World) -> Message:
            (now,) = [r for r in it.redemptions if r["redemption_id"].value == redemption_id]
            if now["state"] == "ROLLED_BACK":
                raise rolled_back(now)
            return {"redemption": dict(now)}

        self.once(key, parameters, still)
        return still(self)

    def _beside_others(self, redemption: Message, amount: Message, own: Message) -> Message:
        """What the other coupons on the order have left of a discount."""
        if self.books[redemption["book_id"]]["order_policy"] == "INDEPENDENT":
            return own
        whose = redemption["_user"] if redemption["_own_order"] else ""
        others = self.coupons_on(redemption["_order"], whose)
        if redemption["user_id"] in self.erased_users:  # nobody knows what others redeemed for it
            others = [it for it in others if it["order_id"] == redemption["order_id"]]
        return self.beside(own, amount, [it for it in others if it is not redemption])

    def _check(self, redemption: Message, amount: Message) -> str:
        """The currency of the redemption. Raises why it cannot have this amount."""
        terms, book = redemption["_terms"], self.books[redemption["book_id"]]
        given: Message = redemption["order_amount"] or {"currency_code": ""}
        currency: str = terms["currency_code"] or given["currency_code"]
        if currency and currency != amount["currency_code"]:
            raise Refusal("CURRENCY_MISMATCH", currency_code=currency)
        before = redemption["order_amount"]
        if before is None or amount["amount_minor"] > before["amount_minor"]:
            if book["state"] != "ACTIVE":
                raise Refusal("BOOK_NOT_ACTIVE", state=book["state"])
            if 0 < book["end_time"] <= self.now:
                raise Refusal("BOOK_EXPIRED", end_time=iso(book["end_time"]))
        return currency

    def _check_budget(self, redemption: Message, discount: Message | None) -> None:
        """Raises when more would be taken off than is left."""
        book = self.books[redemption["book_id"]]
        budget = book["limits"]["max_discount_minor"]
        more = _amount(discount) - _amount(redemption["discount"])
        live = self.live(book_id=redemption["book_id"])
        left = max(budget - sum(_amount(it["discount"]) for it in live), 0)
        if budget and more > max(left, 0):
            told = {"limit_minor": budget, "left_minor": left}
            raise Refusal("BUDGET_EXCEEDED", **told, currency_code=book["currency_code"])


def _amount(money: Message | None) -> int:
    return money["amount_minor"] if money else 0
