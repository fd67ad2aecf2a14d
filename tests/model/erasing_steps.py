"""Steps of random programs: users who are erased."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.bulk_steps import BulkSteps
from model.draws import REQUEST_IDS, USERS, step
from model.state import Message
from support.service import audit, redemptions

from coupon_service.model.pseudonyms import PREFIX


class ErasingSteps(BulkSteps):
    """Programs that erase users, who come again."""

    @step(4, name=USERS, request_id=REQUEST_IDS)
    def erase(self, name: str, request_id: str) -> None:
        if self.shares_codes:  # who is bound to a business may not
            return
        (user, sent), request_id = self.user(name), self.fresh(request_id)
        request = audit.EraseUserRequest(user_id=sent, request_id=request_id)

        def erased(request: Any, **how: Any) -> audit.EraseUserResponse:
            *_, last = self.api.audit.EraseUser(request, **how)
            for field in ("changed_rows", "begin_time", "erase_time"):
                last.erasure.ClearField(field)
            return last

        def erase(actual: Message) -> Message:
            ids = {
                it["order_id"]: it["redemption_id"].value
                for it in self.world.redemptions
                if it["user_id"] == user and it["order_id"]
            }
            answer = self.world.erase(user, actual["erasure"]["pseudonym"], request_id)
            if not answer.get("replayed"):
                self.learn_orders(user, ids)
            return answer

        self.call(erased, request, erase)

    def learn_orders(self, user: str, ids: Mapping[str, str]) -> None:
        """What stands for each order, of which this is a redemption."""
        orders: dict[str, str] = {}
        for order_id, redemption_id in ids.items():
            request = redemptions.GetRedemptionRequest(redemption_id=redemption_id)
            found = self.api.redemptions.GetRedemption(request).redemption.order_id
            assert found.startswith(PREFIX)
            orders[order_id] = found
        assert len(set(orders.values())) == len(orders)
        self.world.name_orders(user, orders)
