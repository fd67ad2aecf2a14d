"""What `coupon-service dev` shows of the service: a demo book, and a session to paste."""

from __future__ import annotations

from typing import Final

from coupon_service.cli.client import Service
from coupon_service.v1.coupon_book_service_pb2 import (
    ASSIGNMENT_POLICY_BEARER,
    ActivateCouponBookRequest,
    CouponBook,
    CreateCouponBookRequest,
    Discount,
    PercentOff,
)
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub
from coupon_service.v1.coupon_code_service_pb2 import ImportChunk, ImportCodesRequest, ImportHeader
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub

DEMO_CODES: Final = tuple(f"WELCOME{number}" for number in range(1, 6))

SESSION: Final = r"""
{token}call() { grpcurl -plaintext {header}-d "$2" {address} "coupon_service.v1.$1"; }
command -v grpcurl >/dev/null || call() { {command} call --address {address} "$@"; }

# A book: 15 percent off, at most 10 EUR, every code once
BOOK=$(call CouponBookService/CreateCouponBook '{
  "request_id": "tour-1",
  "coupon_book": {
    "business_id": "acme", "name": "Spring sale", "currency_code": "EUR",
    "discount": {"percent_off": {"basis_points": 1500, "max_discount_minor": 1000}}
  }
}' | sed -nE 's/.*"book_?[iI]d": *"([^"]*)".*/\1/p'); echo "The book: $BOOK"

# Its codes: a stream of a header and chunks, each of which is answered
call CouponCodeService/ImportCodes '
  {"header": {"book_id": "'$BOOK'", "request_id": "tour-2"}}
  {"chunk": {"chunk_number": 1, "codes": ["SPRING-0001", "SPRING-0002", "SPRING-0003"]}}'

call CouponBookService/ActivateCouponBook '{"book_id": "'$BOOK'", "request_id": "tour-3"}'

# A code for Ann
call AssignmentService/AssignCode '{
  "code": "SPRING-0001", "user_id": "ann", "request_id": "tour-4"}'

# She pays: the code is hers until the lock runs out, however she types it
TOKEN=$(call RedemptionService/LockCode '{
  "code": "spring 0001", "user_id": "ann", "request_id": "tour-5"
}' | sed -nE 's/.*"lock_?[tT]oken": *"([^"]*)".*/\1/p'); echo "The lock: $TOKEN"

# She has paid: 15 percent of 40.00 EUR
call RedemptionService/RedeemCode '{
  "code": "SPRING-0001", "user_id": "ann", "order_id": "order-1", "lock_token": "'$TOKEN'",
  "order_amount": {"amount_minor": 4000, "currency_code": "EUR"}, "request_id": "tour-6"}'

# The ledger has it all, newest first
call AuditService/ListAuditEvents '{"code": "SPRING-0001"}'
"""


EXPORT: Final = "export COUPON_TOKEN=$({token_command})\n"
HEADER: Final = '-H "authorization: Bearer $COUPON_TOKEN" '


def session(address: str, command: str, token_command: str | None = None) -> str:
    """Lines for a shell that take a coupon from its book to the ledger, with grpcurl or without.

    They can be pasted again: every call has a `request_id`, so that nothing happens twice. Then
    AssignCode and LockCode say that what they gave has been used up; the others answer as before.
    `token_command` prints the token where the service asks for one.
    """
    values = {
        "token": EXPORT.replace("{token_command}", token_command) if token_command else "",
        "header": HEADER if token_command else "",
        "address": address,
        "command": command,
    }
    text = SESSION
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text.strip()


async def make_demo_book(service: Service) -> CouponBook:
    """The demo book, whose codes whoever has one may use. Made once; later calls change nothing."""
    books = CouponBookServiceStub(service.channel)
    created = await books.CreateCouponBook(
        CreateCouponBookRequest(
            request_id="demo",
            coupon_book=CouponBook(
                business_id="demo",
                name="Welcome",
                description="10 % off for whoever has a code.",
                currency_code="EUR",
                discount=Discount(percent_off=PercentOff(basis_points=1_000)),
                assignment_policy=ASSIGNMENT_POLICY_BEARER,
            ),
        ),
        metadata=service.metadata,
    )
    book_id = created.coupon_book.book_id
    upload = CouponCodeServiceStub(service.channel).ImportCodes(
        iter(
            (
                ImportCodesRequest(header=ImportHeader(book_id=book_id, request_id="demo")),
                ImportCodesRequest(chunk=ImportChunk(chunk_number=1, codes=DEMO_CODES)),
            )
        ),
        metadata=service.metadata,
    )
    async for _ in upload:
        pass
    activated = await books.ActivateCouponBook(
        ActivateCouponBookRequest(book_id=book_id, request_id="demo"), metadata=service.metadata
    )
    return activated.coupon_book
