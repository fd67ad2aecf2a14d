"""Both clients, against the real service."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.certificates import Authority
from support.clients import Either
from support.service import (
    ServerThread,
    assignments,
    audit,
    books,
    codes,
    new_codes,
    redemptions,
    settings_for,
    unique,
)
from support.token_clients import ISSUER

from coupon_service.client import (
    AsyncCouponClient,
    ClientSettings,
    CouponClient,
    Money,
    error_of_item,
    errors,
    verify_audit_proof,
)
from coupon_service.client.methods import Methods
from coupon_service.client.methods import codes as code_methods

CODES = 7


@pytest.fixture(params=["blocking", "asynchronous", "streamed"])
async def client(request: pytest.FixtureRequest, server_address: str) -> AsyncIterator[Either]:
    if request.param == "blocking":
        with CouponClient(server_address) as blocking:
            yield Either(blocking)
    else:
        settings = ClientSettings(streams=2 if request.param == "streamed" else 0)
        async with AsyncCouponClient(server_address, settings=settings) as asynchronous:
            yield Either(asynchronous)


def a_book(**fields: Any) -> books.CouponBook:
    return books.CouponBook(
        business_id=unique("business"),
        name="A book",
        discount=books.Discount(percent_off=books.PercentOff(basis_points=1_500)),
        currency_code="EUR",
        assignment_policy=books.ASSIGNMENT_POLICY_BEARER,
        lock_policy=books.LOCK_POLICY_OPTIONAL,
        **fields,
    )


async def test_every_method_does_what_its_rpc_does(client: Either) -> None:
    book_id = await _set_up_a_book(client)
    await _assign(client, book_id)
    await _lock(client, book_id)
    await _redeem(client, book_id)
    closed = await client.close_coupon_book(book_id)
    assert closed.coupon_book.state == books.COUPON_BOOK_STATE_CLOSED
    events = await client.list_audit_events(
        book_id=book_id,
        types=[audit.AUDIT_EVENT_TYPE_REDEEMED, audit.AUDIT_EVENT_TYPE_ROLLED_BACK],
        start_time=datetime.now(UTC) - timedelta(hours=1),
        page_size=1,
    )
    assert len(events) == 3
    messages = await client.watch_audit_events(
        book_id=book_id,
        types=[audit.AUDIT_EVENT_TYPE_REDEEMED, audit.AUDIT_EVENT_TYPE_ROLLED_BACK],
        stop_at_end=True,
    )
    watched = [event.event_id for message in messages for event in message.events]
    assert watched == [it.event_id for it in reversed(events)]
    user_id = unique("forgotten")
    *_, erased = await client.erase_user(user_id)
    assert (await client.get_erasure(user_id)).erasure == erased.erasure
    await _prove(client, events[0].event_id)
    assert client.called == {
        name for name, _ in inspect.getmembers(Methods) if not name.startswith("_")
    }


async def _prove(client: Either, event_id: str) -> None:
    while (await client.verify_audit())[-1].unsealed_row_count:
        await asyncio.sleep(0.1)
    newest = await client.get_audit_checkpoint()
    proof = await client.get_audit_proof(event_id)
    proved = verify_audit_proof(proof, newest.public_key)
    assert str(proved["event_id"]) == event_id


async def _set_up_a_book(client: Either) -> str:
    book = (await client.create_coupon_book(a_book())).coupon_book
    book_id = book.book_id
    assert (await client.preview_codes(5, book_id=book_id)).feasible
    progress = await client.generate_codes(book_id, 3)
    assert progress[-1].generated_count == 3
    (answer,) = await client.import_codes(book_id, [*new_codes(CODES - 3), "#REF!"])
    assert (answer.created_count, answer.invalid_count) == (CODES - 3, 1)
    await client.update_coupon_book(books.CouponBook(book_id=book_id, name="New"), ["name"])
    for change in (
        client.activate_coupon_book,
        client.pause_coupon_book,
        client.activate_coupon_book,
    ):
        etag = (await client.get_coupon_book(book_id)).coupon_book.etag
        await change(book_id, etag=etag)
    (listed,) = await client.list_coupon_books(business_id=book.business_id)
    assert (listed.name, listed.state) == ("New", books.COUPON_BOOK_STATE_ACTIVE)
    exported = {it.code for it in await client.export_codes(book_id)}
    assert len(exported) == CODES
    paged = await client.list_codes(book_id, page_size=2)
    assert {it.code for it in paged} == exported
    assert len(paged) == CODES
    return book_id


async def _assign(client: Either, book_id: str) -> None:
    user = unique("user")
    code = (await client.list_codes(book_id))[0].code
    await client.disable_code(code)
    assert (await client.get_code(code)).coupon_code.state == codes.COUPON_CODE_STATE_DISABLED
    await client.enable_code(code)
    changed = await client.change_codes(
        book_id, codes.CODE_CHANGE_REVOKE, codes=[code], validate_only=True
    )
    assert [it.total_refused_count for it in changed] == [1]
    made = await client.assign_code(code, user, metadata={"campaign": ["spring", 1]})
    assert made.assignment.metadata["campaign"][0] == "spring"
    await client.assign_random_code(book_id, user)
    given = await client.batch_assign_random_codes(book_id, [unique("user"), unique("user")])
    assert all(it.HasField("assignment") for it in given.results)
    assert len(await client.list_user_coupons(user, page_size=1)) == 2
    assert len(await client.list_assignments(book_id, page_size=3)) == 4
    receiver = unique("user")
    handed_over = await client.transfer_assignment(code, user, receiver, metadata={"gift": True})
    assert handed_over.assignment.user_id == receiver
    revoked = await client.revoke_assignment(code, receiver)
    assert revoked.assignment.state == assignments.ASSIGNMENT_STATE_REVOKED


async def _lock(client: Either, book_id: str) -> None:
    user = unique("user")
    code = (await client.list_codes(book_id, state=codes.COUPON_CODE_STATE_AVAILABLE))[0].code
    locked = await client.lock_code(code, user, ttl_s=30)
    lock_id = locked.lock.lock_id
    with pytest.raises(errors.CodeLocked) as caught:
        await client.lock_code(code, unique("other"))
    assert 0 < caught.value.retry_after_ms <= 60_000
    extended = await client.extend_lock(locked.lock_token, ttl_s=60)
    assert [it.lock_id for it in await client.list_locks(user_id=user)] == [lock_id]
    assert [it.lock_id for it in await client.list_locks(book_id=book_id)] == [lock_id]
    await client.unlock_code(extended.lock_token)
    assert (await client.get_lock(lock_id)).lock.state == redemptions.LOCK_STATE_RELEASED
    locked = await client.lock_code(code, unique("guest"))
    locked = await client.lock_code(code, user, lock_token=locked.lock_token)
    assert locked.lock.user_id == user
    await client.unlock_code(lock_id=locked.lock.lock_id)


async def _redeem(client: Either, book_id: str) -> None:
    user, amount = unique("user"), Money(amount_minor=4_000, currency_code="EUR")
    available = await client.list_codes(book_id, state=codes.COUPON_CODE_STATE_AVAILABLE)
    code, second = (it.code for it in available[:2])
    valid = await client.validate_code(code, user, order_amount=amount)
    assert valid.valid
    fits = await client.qualify_coupons(user, [code], order_amount=amount)
    assert [it.redeemable for it in fits.coupons] == [True]
    answer = await client.redeem_code(code, user, order_id="order", order_amount=amount)
    redemption = answer.redemption
    assert redemption.discount.amount_minor == 600
    half = Money(amount_minor=2_000, currency_code="EUR")
    adjusted = await client.adjust_redemption(redemption.redemption_id, half)
    assert adjusted.redemption.discount.amount_minor == 300
    used = await client.validate_code(code, user)
    assert isinstance(error_of_item(used.problems[0]), errors.CodeAlreadyRedeemed)
    batch = await client.batch_redeem_codes(
        [redemptions.RedeemItem(code=it, user_id=user) for it in (code, second)]
    )
    assert isinstance(error_of_item(batch.results[0].error), errors.CodeAlreadyRedeemed)
    assert batch.redeemed_count == 1
    await client.rollback_redemption(redemption.redemption_id)
    found = await client.get_redemption(redemption.redemption_id)
    assert found.redemption.state == redemptions.REDEMPTION_STATE_ROLLED_BACK
    assert len(await client.list_redemptions(user_id=user, page_size=1)) == 2
    async with asyncio.timeout(60):
        while len(await client.list_refusals(user_id=user, page_size=1)) < 2:
            await asyncio.sleep(0.05)
    stats = (await client.get_coupon_book_stats(book_id)).stats
    assert (stats.redemption_count, stats.rollback_count) == (1, 1)


async def test_refusals_are_the_errors_of_their_reasons(client: Either) -> None:
    with pytest.raises(errors.BookNotFound):
        await client.get_coupon_book("00000000-0000-0000-0000-000000000000")
    with pytest.raises(errors.InvalidArgument) as caught:
        await client.redeem_code("CODE", "")
    assert [it.field for it in caught.value.violations] == ["user_id"]
    book_id = (await client.create_coupon_book(a_book())).coupon_book.book_id
    with pytest.raises(errors.ConcurrentModification):
        await client.activate_coupon_book(book_id, etag="an old one")
    with pytest.raises(errors.InvalidStateTransition) as state:
        await client.pause_coupon_book(book_id)
    assert state.value.state == "DRAFT"


async def test_a_repeat_with_the_same_request_id_has_the_first_result(client: Either) -> None:
    (code,) = new_codes(1)
    book_id = (await client.create_coupon_book(a_book())).coupon_book.book_id
    await client.import_codes(book_id, [code])
    await client.activate_coupon_book(book_id)
    first = await client.redeem_code(code, "ann", request_id="order-1")
    second = await client.redeem_code(code, "ann", request_id="order-1")
    assert (first.replayed, second.replayed) == (False, True)
    assert second.redemption == first.redemption


async def test_codes_are_uploaded_in_chunks(
    client: Either, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_methods, "CHUNK_ROWS_MAX", 3)
    monkeypatch.setattr(code_methods, "CHUNK_MAX_BYTES", 70)
    book_id = (await client.create_coupon_book(a_book())).coupon_book.book_id
    uploaded = [*new_codes(4), new_codes(1)[0].ljust(60, "X"), *new_codes(4)]
    uploaded.append(uploaded[0])
    answers = await client.import_codes(book_id, iter(uploaded), request_id="upload")
    assert [it.chunk_number for it in answers] == list(range(1, len(answers) + 1))
    assert len(answers) >= 4
    assert sum(it.created_count for it in answers) == 9
    assert sum(it.duplicate_count for it in answers) == 1
    again = await client.import_codes(book_id, iter(uploaded), request_id="upload")
    assert all(it.replayed for it in again)


async def test_codes_with_and_without_terms_are_uploaded_in_order(client: Either) -> None:
    book_id = (await client.create_coupon_book(a_book())).coupon_book.book_id
    own, plain, last = new_codes(3)
    with_terms = codes.NewCode(code=own, terms=codes.CodeTerms(max_redemptions=3))
    answers = await client.import_codes(book_id, [plain, with_terms, own, last])
    assert [(it.created_count, it.duplicate_count) for it in answers] == [(1, 0), (1, 0), (1, 1)]
    assert (await client.get_code(own)).coupon_code.terms.max_redemptions == 3


@pytest.mark.parametrize("kind", [CouponClient, AsyncCouponClient])
async def test_a_token_says_who_calls(
    guarded: ServerThread, kind: type[CouponClient | AsyncCouponClient]
) -> None:
    def token() -> str:
        return ISSUER.token(roles=["redeemer"])

    allowed = Either(kind(guarded.address, token=token))
    with pytest.raises(errors.CodeNotFound):
        await allowed.redeem_code("UNKNOWN", "ann")
    with pytest.raises(errors.PermissionDenied):
        await allowed.create_coupon_book(a_book())
    unknown = Either(kind(guarded.address))
    with pytest.raises(errors.Unauthenticated):
        await unknown.list_codes("00000000-0000-0000-0000-000000000000")
    for client in (allowed, unknown):
        await client.close()


@pytest.mark.parametrize("kind", [CouponClient, AsyncCouponClient])
async def test_credentials_are_those_of_tls(
    kind: type[CouponClient | AsyncCouponClient],
    database_url: str,
    redis_url: str,
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path, "authority")
    pair = authority.sign("service", "127.0.0.1")
    settings = settings_for(
        database_url, redis_url, tls_certificate_file=pair.certificate, tls_key_file=pair.key
    )
    with ServerThread(settings) as running:
        credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
        client = Either(kind(running.address, credentials=credentials))
        assert await client.list_coupon_books() == []
        await client.close()
