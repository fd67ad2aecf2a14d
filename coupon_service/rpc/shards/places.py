"""Which shard a request is for, by what it says: its business, or an id that leads to it.

Only that is read here. What is bad in a request is found where it is read as a whole, by whichever
shard: so an id that cannot be one is looked for in the first.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from coupon_service.errors import BusinessRequired, LockTokenMismatch
from coupon_service.locks.token import LockTokens
from coupon_service.model.normalization import canonical_id
from coupon_service.model.scopes import (
    scope_of_book,
    scope_of_book_named,
    scope_of_business,
    shard_of_event,
    shard_of_scope,
)
from coupon_service.rpc.context import RequestContext
from coupon_service.store.sessions import ShardPlace

FIRST: Final = 0
"""The shard that answers what any of them would answer alike."""

WHAT_IT_NEEDS: Final = (
    "Expected a business_id, or a book_id where the method has one: with several shards a code is"
    " looked for in that of its business."
)


class Places:
    """Knows in which of so many shards what is. `tokens` reads tokens of locks."""

    def __init__(self, shards: int, tokens: LockTokens) -> None:
        self.shards = shards
        self._tokens = tokens

    # --- businesses, as scopes (`model/scopes.py`) ------------------------------------------------

    def scope(self, request: Any, rpc: RequestContext, named_before: str = "") -> int | None:
        """The business whose code a request means; None when it names none.

        `named_before`: the business of a request that this one is an item of.
        """
        named = rpc.business_id or request.business_id or named_before
        if named:
            return scope_of_business(canonical_id(named))
        if book_id := getattr(request, "book_id", ""):
            return scope_of_book_named(book_id)
        return scope_of_business(rpc.default_business) if rpc.default_business else None

    def scope_of_lock(self, token: str) -> int:
        """The business of the lock; that of none for a token that is not ours."""
        try:
            return scope_of_book(self._tokens.verify(token).book_id)
        except LockTokenMismatch:
            return 0

    def of_scope(self, scope: int) -> int:
        """The shard of a business."""
        return shard_of_scope(scope, self.shards)

    # --- of requests, by what they have -----------------------------------------------------------

    def of_code(self, request: Any, rpc: RequestContext) -> int:
        """Of a request that names a code. Raises BusinessRequired."""
        scope = self.scope(request, rpc)
        if scope is None:
            raise BusinessRequired(WHAT_IT_NEEDS)
        return self.of_scope(scope)

    def of_book(self, request: Any, _: RequestContext) -> int:
        """Of a request that has to name a book, or else says nothing of what is stored."""
        return self.of_scope(scope_of_book_named(request.book_id))

    def of_changed_book(self, request: Any, _: RequestContext) -> int:
        """Of a request that has a book with its id."""
        return self.of_scope(scope_of_book_named(request.coupon_book.book_id))

    def of_new_book(self, request: Any, _: RequestContext) -> int:
        """Of a request that has a book without an id."""
        return self.of_scope(scope_of_business(canonical_id(request.coupon_book.business_id)))

    def of_upload(self, header: Any, _: RequestContext) -> int:
        """Of the first message of an upload."""
        return self.of_scope(scope_of_book_named(header.header.book_id))

    def of_redemption(self, request: Any, _: RequestContext) -> int:
        """Of a request that names a redemption."""
        return self._of_event_named(request.redemption_id)

    def of_lock(self, request: Any, _: RequestContext) -> int:
        """Of a request that names a lock by its token or else its id."""
        if token := getattr(request, "lock_token", ""):
            return self.of_scope(self.scope_of_lock(token))
        return self._of_event_named(getattr(request, "lock_id", ""))

    def of_locks(self, request: Any, _: RequestContext) -> int:
        """Of a list of the locks of a book, or of a user, which any shard knows of all of them."""
        return self.of_scope(scope_of_book_named(request.book_id)) if request.book_id else FIRST

    def of_list(self, request: Any, rpc: RequestContext) -> int | None:
        """Of a list of one business or book; None for one of all."""
        if named := rpc.business_id or getattr(request, "business_id", ""):
            return self.of_scope(scope_of_business(canonical_id(named)))
        return self.of_book(request, rpc) if getattr(request, "book_id", "") else None

    def of_event(self, request: Any, rpc: RequestContext) -> int:
        """Of a request that names an event of any kind: where to look for it first. Only ids of
        attempts on codes lead to their shard."""
        if rpc.business_id:
            return self.of_scope(scope_of_business(canonical_id(rpc.business_id)))
        return self._of_event_named(request.event_id)

    def of_ledger(self, request: Any, rpc: RequestContext) -> int | None:
        """Of a request about the ledger of a shard; None for those of all."""
        of_business = self.of_list(request, rpc)
        if of_business is not None or not request.shard:
            return of_business
        names = [ShardPlace(it, self.shards).schema for it in range(self.shards)]
        return names.index(request.shard) if request.shard in names else FIRST

    def _of_event_named(self, text: str) -> int:
        event_id = _uuid(text)
        return shard_of_event(event_id, self.shards) if event_id is not None else FIRST


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
