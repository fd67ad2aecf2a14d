"""Orders and budgets in the plain model: what coupons take off, and which go together."""

from __future__ import annotations

from collections.abc import Iterator

from model.assignments import Assignments
from model.state import Item, Message, Refusal, taken_off


class Orders(Assignments):
    """Looks at the live redemptions for an order, and of a book."""

    def own_discount(self, book: Message, amount: Message | None) -> Message | None:
        """What the book takes off an order."""
        kind, known = book["discount"], amount and amount["currency_code"] == book["currency_code"]
        order = amount["amount_minor"] if amount and known else None
        for tier in kind.get("tiers", {}).get("tiers", ()):
            kind = tier if (order or 0) >= tier["from_amount_minor"] else kind
        if "amount_off" in kind:
            off = kind["amount_off"]["amount_minor"]
            off = off if order is None else min(off, order)
        elif "percent_off" in kind and order is not None:
            off = order * kind["percent_off"]["basis_points"] // 10_000
            off = min(off, kind["percent_off"].get("max_discount_minor") or off)
        else:
            return None
        return {"amount_minor": off, "currency_code": book["currency_code"]}

    def discount(self, book: Message, item: Item) -> Message | None:
        """What an order would be reduced by: no more than other coupons have left of it."""
        own, amount = self.own_discount(book, item.amount), item.amount
        if own is None or amount is None or book["order_policy"] == "INDEPENDENT":
            return own
        currencies = {"", book["currency_code"]}
        order = self._order_of(item)
        if {amount["currency_code"], self.order_currencies.get(order, "")} <= currencies:
            own = self.beside(own, amount, self.coupons_on(*order))
        return own

    def beside(self, own: Message, amount: Message, others: list[Message]) -> Message:
        """What others have left of a discount."""
        left = amount["amount_minor"] - sum(map(taken_off, others))
        return {**own, "amount_minor": max(min(own["amount_minor"], left), 0)}

    def coupons_on(self, order_id: str, whose: str) -> list[Message]:
        """What is on the order, of books that are not independent."""
        return [
            it
            for it in self.live(_order=order_id, _own_order=bool(whose))
            if self.books[it["book_id"]]["order_policy"] != "INDEPENDENT"
            and whose in ("", it["_user"])
        ]

    def _order_of(self, item: Item) -> tuple[str, str]:
        return item.order_id, self.end_user

    def coupon_refusals(self, item: Item, book: Message) -> Iterator[Refusal]:
        """Why the coupon does not go with what is on the order."""
        if not item.order_id:
            yield Refusal("ORDER_ID_REQUIRED")
        if not item.amount and book["order_policy"] == "COMBINABLE":
            yield Refusal("ORDER_AMOUNT_REQUIRED")
        if not item.order_id:
            return
        order = self._order_of(item)
        beside, currency = self.coupons_on(*order), self.order_currencies.get(order, "")
        fits = item.amount and currency in ("", item.amount["currency_code"])
        if item.amount and not fits:
            yield Refusal("CURRENCY_MISMATCH", currency_code=currency)
        books_beside = [self.books[it["book_id"]] for it in beside]
        if beside and "EXCLUSIVE" in [it["order_policy"] for it in (book, *books_beside)]:
            yield Refusal("COUPONS_NOT_COMBINABLE")
        group = book["exclusive_group"]
        if group and group in [it["exclusive_group"] for it in books_beside]:
            yield Refusal("EXCLUSIVE_GROUP_USED", exclusive_group=group)
        limit = book["limits"]["max_redemptions_per_order"]
        if 0 < limit <= [it["book_id"] for it in beside].count(book["book_id"]):
            yield Refusal("ORDER_LIMIT_EXCEEDED", limit=limit)
        off = sum(map(taken_off, beside))
        money = "benefit" not in book["discount"]
        if money and item.amount and fits and item.amount["amount_minor"] <= off:
            of_order = item.amount["currency_code"]
            yield Refusal("ORDER_FULLY_DISCOUNTED", discount_minor=off, currency_code=of_order)

    def budget_refusals(self, item: Item | None, book: Message) -> Iterator[Refusal]:
        """Why the budget of the book is too small."""
        budget, need = book["limits"]["max_discount_minor"], 1
        if not budget:
            return
        if item is not None:
            off = self.discount(book, item)
            unknown = off is None and "benefit" not in book["discount"]
            if unknown and item.amount is None and book["order_policy"] != "COMBINABLE":
                yield Refusal("ORDER_AMOUNT_REQUIRED")
            need = off["amount_minor"] if off else 0
        live = self.live(book_id=book["book_id"])
        left = max(budget - sum(map(taken_off, live)), 0)
        if need > left:
            told = {"limit_minor": budget, "left_minor": left}
            told["currency_code"] = book["currency_code"]
            yield Refusal("BUDGET_EXCEEDED", **({} if self.end_user else told))

    def keep_currency(self, redemption: Message) -> None:
        """Remembers the currency of an order for as long as it has a coupon."""
        book = self.books[redemption["book_id"]]
        if book["order_policy"] == "INDEPENDENT":
            return
        order = redemption["_order"], redemption["_user"] if redemption["_own_order"] else ""
        if not self.coupons_on(*order):
            self.order_currencies.pop(order, None)
        elif redemption["state"] == "SUCCEEDED":
            currency = (redemption["order_amount"] or book)["currency_code"]
            self.order_currencies[order] = currency or self.order_currencies.get(order, "")
