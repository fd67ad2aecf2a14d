"""The plain model: codes that are changed many at a time, in one chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.adjusting import AdjustingWorld
from model.state import Message, Refusal

HISTORY = {
    "ASSIGNED",
    "REVOKED",
    "LOCKED",
    "LOCK_EXTENDED",
    "UNLOCKED",
    "LOCK_EXPIRED",
    "REDEEMED",
    "ROLLED_BACK",
}


class ChangingWorld(AdjustingWorld):
    """Changes codes of a list, or those that match a filter."""

    def change_codes(
        self,
        book_id: str,
        change: str,
        listed: Sequence[tuple[str, str]] | None,
        wanted: Message,
        request_id: str,
        dry: bool,
    ) -> Message:
        """ChangeCodes, all in one chunk. `listed`: codes as they are typed and as they are stored;
        `wanted`: the filter where there is none."""
        if book_id not in self.books:
            raise Refusal("BOOK_NOT_FOUND")
        upload = wanted.get("upload_request_id")
        uploads = {
            it["request_id"]
            for it in self.ledger
            if it["book_id"] == book_id and it["type"] in ("CODES_IMPORTED", "CODES_GENERATED")
        }
        if upload and upload not in uploads:
            raise Refusal("UPLOAD_NOT_FOUND")
        key = "CODES_CHANGED", book_id, request_id
        codes = None if listed is None else [code for _, code in listed]
        parameters = change, codes, wanted
        if not dry and (again := self.once(key, parameters, None)):
            return again

        mine = [
            code for code, it in self.codes.items() if it.book_id == book_id and not it.next_book
        ]
        if listed is None:
            mine = [it for it in mine if wanted.get("state") in (None, self.state(it))]
            chosen = [(it, it) for it in mine if self._matches(it, wanted)]
            examined = len(mine)
        else:
            chosen, examined = list(listed), len(listed)
        changed, refused, deleted = 0, list[Message](), list[str]()
        for typed, code in chosen:
            refusal = Refusal("CODE_NOT_FOUND") if code not in mine else None
            refusal = refusal or self._refusal(code, change, listed is not None)
            if refusal is not None:
                refused.append({"code": typed, "error": refusal.error})
            elif change == "DELETE":
                changed += 1
                deleted.append(code)
            else:
                changed += self._change(code, change, request_id, dry=dry)
        answer: Message = {
            "chunk_number": 1,
            "changed_count": changed,
            "refused": sorted(refused, key=lambda it: it["code"]),
            "total_changed_count": changed,
            "total_refused_count": len(refused),
            "total_examined_count": examined,
            "done": True,
        }
        if not dry:
            for code in deleted:
                self.delete(code)
            record = {
                "change": change,
                "filter": wanted if listed is None else {},
                "changed": changed,
                "refused": len(refused),
                "total_changed": changed,
                "total_refused": len(refused),
                "examined": examined,
                "done": True,
                "number": 1,
                "codes": sorted(deleted),
            }
            kind = "CODES_DELETED" if deleted else "CODES_CHANGED"
            self.record(kind, book_id, request_id, metadata=record)
            self.once(key, parameters, lambda _: answer)
        return answer

    def _matches(self, code: str, wanted: Message) -> bool:
        upload = wanted.get("upload_request_id")
        return code.startswith(wanted.get("prefix", "")) and (
            not upload or self.codes[code].source[1] == upload
        )

    def _refusal(self, code: str, change: str, named: bool) -> Refusal | None:
        if change == "DELETE":
            book_id = self.codes[code].book_id
            seen = {
                it["type"]
                for it in self.ledger
                if it.get("code") == code and it["book_id"] == book_id
            }
            return Refusal("CODE_HAS_HISTORY") if seen & HISTORY else None
        if change == "REVOKE":
            return None if self._active(code) or not named else Refusal("ASSIGNMENT_NOT_FOUND")
        if self.codes[code].disabled is (change == "DISABLE"):
            return Refusal("INVALID_STATE_TRANSITION", state=self.state(code))
        return None

    def _active(self, code: str) -> list[str]:
        assigned = self.assignments.items()
        return sorted(user for (of, user), it in assigned if of == code and it.state == "ACTIVE")

    def _change(self, code: str, change: str, request_id: str, *, dry: bool) -> int:
        """Disables, enables or revokes; returns how many changes that is."""
        users = self._active(code)
        if dry:
            return len(users) if change == "REVOKE" else 1
        before = self.state(code)
        if change != "REVOKE":
            self.codes[code].disabled = change == "DISABLE"
            self.code_event(f"CODE_{change}D", code, before, request_id)
            return 1
        for user in users:
            before, fields = self.state(code), dict[str, Any](user_id=user)
            self.assignments[code, user].state = "REVOKED"
            self.code_event("REVOKED", code, before, request_id, **fields)
        return len(users)
