"""A tour of the service: a call or two of each kind of work that it does in PostgreSQL."""

from __future__ import annotations

from support.service import Api, all_at_once, books, codes, new_codes, unique

LIMITS = books.BookLimits(max_redemptions_per_code=5, max_redemptions_per_user_per_code=5)


def take_tour(api: Api) -> None:
    """Books, codes, assignments, locks, redemptions and the ledger, each with what has to hold."""
    code, other, *_ = names = new_codes(20)
    book = api.book(codes=names, limits=LIMITS, lock_policy=books.LOCK_POLICY_OPTIONAL)
    token = api.lock(code, "ann").lock_token
    redeemed = api.redeem(code, "ann", lock_token=token).redemption
    results = all_at_once([lambda: api.redeem(code, "bob") for _ in range(8)])
    assert sum(hasattr(it, "redemption") for it in results) == 4
    assert api.get_code(code).redemption_count == 5
    assert api.rollback(redeemed.redemption_id).redemption.redemption_id == redeemed.redemption_id
    assert api.validate(other, "ann").valid
    assert api.assign_random(book.book_id, "ann").assignment.user_id == "ann"
    request = codes.GenerateCodesRequest(
        book_id=book.book_id, count=200, request_id=unique("request")
    )
    assert list(api.codes.GenerateCodes(request))[-1].generated_count == 200
    exported = api.codes.ExportCodes(codes.ExportCodesRequest(book_id=book.book_id))
    assert sum(len(page.codes) for page in exported) == 220
    assert api.stats(book.book_id).redemption_count == 4
    assert api.event_names(code=code).count("REDEEMED") == 5
