"""The plain model: users who are erased, and come again."""

from __future__ import annotations

from collections.abc import Mapping

from model.changing import ChangingWorld
from model.state import Assignment, Message

KNOWN_MS = 51 * 3_600_000
"""How long after a lock was taken or extended it is ended by an erasure."""


class ErasingWorld(ChangingWorld):
    """All of it."""

    def erase(self, user: str, name: str, request_id: str) -> Message:
        """EraseUser, the last message; `name`: the pseudonym that the service has for the user."""
        key = "USER_ERASED", user, request_id
        if again := self.once(key, (), None):
            return again
        self._end_locks(user, request_id)
        for owner in (user, name):
            self._end_assignments(owner, request_id)
        self.erased_users[name] = user
        self._rename_assignments(user, name)
        for lock in self.locks:
            if lock.message["user_id"] == user:
                lock.message["user_id"] = name
        for redemption in self.redemptions:
            if redemption["user_id"] == user:
                redemption |= {"user_id": name, "metadata": {}}
        self._rename_events(user, name)
        for attempt, users in self.about.items():
            if user in users:
                self.forgotten.add(attempt)
        answer: Message = {"erasure": {"pseudonym": name, "state": "ERASED"}}
        self.once(key, (), lambda _: answer)
        return answer

    def name_orders(self, user: str, orders: Mapping[str, str]) -> None:
        """What stands for the orders of a user who was erased, as the service tells."""
        for redemption in self.redemptions:
            if redemption["_user"] == user and redemption["user_id"] != user:
                redemption["order_id"] = orders.get(redemption["order_id"], redemption["order_id"])
        for event in self.ledger:
            if self.erased_users.get(event.get("user_id", "")) == user:
                order_id = event.get("order_id", "")
                event["order_id"] = orders.get(order_id, order_id)

    def _end_locks(self, user: str, request_id: str) -> None:
        for number, lock in enumerate(self.locks):
            state, since = self.lock_state(lock), lock.message["create_time"]
            if lock.message["user_id"] != user or lock.end or self.now - since > KNOWN_MS:
                continue
            if state == "HELD":
                self.release(lock, request_id)
            else:
                lock.end = "EXPIRED"
                self._lock_event("LOCK_EXPIRED", number, request_id)

    def _end_assignments(self, user: str, request_id: str) -> None:
        for (code, owner), assignment in self.assignments.items():
            if owner == user and assignment.state == "ACTIVE":
                before = self.state(code)
                assignment.state = "REVOKED"
                self.code_event("REVOKED", code, before, request_id, user_id=user)

    def _rename_assignments(self, user: str, name: str) -> None:
        for code, owner in list(self.assignments):
            if owner != user:
                continue
            own = self.assignments.pop((code, owner))
            before = self.assignments.setdefault((code, name), Assignment())
            before.redemptions += own.redemptions
            if not before.state or own.state == "REDEEMED":
                before.state = own.state
            if own.given and not before.given:
                before.given = {**own.given, "user_id": name, "metadata": {}}

    def _rename_events(self, user: str, name: str) -> None:
        for event in self.ledger:
            if event.get("user_id") == user:
                event |= {"user_id": name, "metadata": {}}
                if event["caller"] == user:
                    event["caller"] = name
            if event.get("other_user_id") == user:
                event["other_user_id"] = name
