"""What catches mutants of codes that are unique within their business."""

from __future__ import annotations

from mutants.harness import Stack
from support.calls import tried
from support.service import Api, books, new_codes, unique

from coupon_service.store import finishing

BOTH = ("ours", "theirs")


def finished(it: Stack) -> None:
    """Codes of new books are unique within their business."""
    list(finishing.finish(it.database_url))


def code_of_both(api: Api) -> tuple[str, list[str]]:
    """A code that two businesses have, and the book of each."""
    (code,) = new_codes(1)
    policy = books.LOCK_POLICY_OPTIONAL
    made = [api.book(codes=[code], business_id=it, lock_policy=policy).book_id for it in BOTH]
    return code, made


def each_business_by_itself(it: Stack) -> None:
    """Two businesses have the same code, and neither notices the other."""
    finished(it)
    api = it.apis[0]
    code, made = code_of_both(api)
    once = unique("request")
    for business_id, book_id in zip(BOTH, made, strict=True):
        done = api.redeem(code, "user", request_id=once, business_id=business_id)
        assert (done.redemption.book_id, done.replayed) == (book_id, False)
    for business_id in BOTH:
        assert api.redeem(code, "user", request_id=once, business_id=business_id).replayed
    it.conserved()


def locks_of_both(it: Stack) -> None:
    """Each business locks its code, and a token holds only for its book."""
    finished(it)
    api = it.apis[0]
    code, _ = code_of_both(api)
    ours = api.lock(code, "ann", business_id="ours")
    theirs = api.lock(code, "bob", business_id="theirs")
    assert tried(lambda: api.redeem(code, "cid", business_id="theirs")) == "CODE_LOCKED"
    stolen = {"lock_token": ours.lock_token, "business_id": "theirs"}
    assert tried(lambda: api.redeem(code, "ann", **stolen)) == "LOCK_TOKEN_MISMATCH"
    api.redeem(code, "bob", lock_token=theirs.lock_token, business_id="theirs")
    api.redeem(code, "ann", lock_token=ours.lock_token, business_id="ours")
    it.conserved()


def who_names_no_business(it: Stack) -> None:
    """Who sees several businesses names one, whatever the code."""
    finished(it)
    api = it.apis[0]
    code, _ = code_of_both(api)
    for each in (code, *new_codes(1)):
        assert tried(lambda each=each: api.redeem(each, "user")) == "BUSINESS_REQUIRED"


def upload_of_what_was_there_before(it: Stack) -> None:
    """A business has a code once, also when one of its books is from before."""
    api = it.apis[0]
    (code,) = new_codes(1)
    api.book(codes=[code], business_id="ours")
    finished(it)
    (result,) = api.import_codes(api.draft(business_id="ours").book_id, [code])
    assert result.created_count == 0
