"""All RPCs, called with independent implementations of gRPC and protobuf: Node's and Go's."""

from __future__ import annotations

import json
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from support.service import new_codes, unique
from support.waiting import until

from coupon_service.server import SERVICES
from coupon_service.v1 import (
    assignment_service_pb2,
    audit_service_pb2,
    coupon_book_service_pb2,
    coupon_code_service_pb2,
    redemption_service_pb2,
)

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
GRPCURL: Final = ROOT / ".tools" / "grpcurl"
PATIENCE_S: Final = 60

MODULES: Final = (
    coupon_book_service_pb2,
    coupon_code_service_pb2,
    assignment_service_pb2,
    redemption_service_pb2,
    audit_service_pb2,
)

Message = dict[str, Any]


class Client(Protocol):
    """Calls a method with requests in JSON; returns the responses. Raises AssertionError."""

    @abstractmethod
    def call(self, service: str, method: str, *requests: Message) -> list[Message]: ...


class Node:
    """`client.js` beside this file, on @grpc/grpc-js."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            ["node", HERE / "client.js", address, ROOT / "proto"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, service: str, method: str, *requests: Message) -> list[Message]:
        """Send a line, and read a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        call = {"service": service, "method": method, "requests": list(map(_plain, requests))}
        print(json.dumps(call), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert "responses" in answer, f"{method}: {answer}"
        return answer["responses"]

    def close(self) -> None:
        """Stop the program."""
        with self.process as process:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0


class Grpcurl:
    """grpcurl, with the proto files."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._contract = ["-import-path", ROOT / "proto"]
        for path in (ROOT / "proto").glob("coupon_service/v1/*.proto"):
            self._contract += ["-proto", path.relative_to(ROOT / "proto")]

    def call(self, service: str, method: str, *requests: Message) -> list[Message]:
        """Run the program once."""
        method = f"coupon_service.v1.{service}/{method}"
        ran = subprocess.run(
            [GRPCURL, "-plaintext", *self._contract, "-d", "@", self._address, method],
            input="\n".join(json.dumps(it, ensure_ascii=False) for it in requests),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ran.returncode == 0, f"{method}: {ran.stderr}"
        return list(_messages(ran.stdout))


def _plain(request: Message) -> Message:
    """The request with durations as fields: Node's loader does not read their JSON form."""
    plain = dict(request)
    if "ttl" in plain:
        plain["ttl"] = {"seconds": int(plain["ttl"].removesuffix("s"))}
    return plain


def _messages(text: str) -> Iterator[Message]:
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        yield message
        text = text[end:]


@pytest.fixture(params=["node", "grpcurl"])
def client(request: pytest.FixtureRequest, server_address: str) -> Iterator[Client]:
    if request.param == "grpcurl":
        if not GRPCURL.exists():
            pytest.skip("grpcurl is missing: make tools")
        yield Grpcurl(server_address)
        return
    if shutil.which("node") is None or not (HERE / "node_modules").exists():
        pytest.skip("Node or its packages are missing: make interop")
    node = Node(server_address)
    yield node
    node.close()


class Caller:
    """Makes calls, and records their methods."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.called: set[str] = set()

    def all(self, path: str, *requests: Message) -> list[Message]:
        """All answers to a call."""
        service, method = path.split("/")
        self.called.add(path)
        return self._client.call(service, method, *requests)

    def one(self, path: str, /, **request: Any) -> Message:
        """The only answer to a call with these fields."""
        (response,) = self.all(path, request)
        return response

    def change(self, path: str, /, **request: Any) -> Message:
        """The same for a method with a request_id."""
        return self.one(path, requestId=unique("request"), **request)


def all_methods() -> set[str]:
    """Service/Method of all RPCs of the contract."""
    paths = {
        f"{service.name}/{method.name}"
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {path.split("/")[0] for path in paths} == {it.rpartition(".")[2] for it in SERVICES}
    return paths


def test_every_rpc_answers_other_implementations(client: Client) -> None:
    caller = Caller(client)
    book_id, codes = make_book_with_codes(caller)
    assign_codes(caller, book_id, codes)
    lock_codes(caller, book_id, codes[0])
    redeem_codes(caller, book_id, codes)
    close_book(caller, book_id, codes)
    assert all_methods() - caller.called == set()


def make_book_with_codes(caller: Caller) -> tuple[str, list[str]]:
    """A book with five imported and five generated codes."""
    book = caller.change(
        "CouponBookService/CreateCouponBook",
        couponBook={
            "businessId": unique("business"),
            "name": "Interop",
            "discount": {"percentOff": {"basisPoints": 1_000}},
            "currencyCode": "EUR",
            "assignmentPolicy": "ASSIGNMENT_POLICY_BEARER",
            "lockPolicy": "LOCK_POLICY_OPTIONAL",
            "limits": {"maxRedemptionsPerCode": 2},
        },
    )["couponBook"]
    book_id = book["bookId"]
    assert book["state"] == "COUPON_BOOK_STATE_DRAFT"
    preview = caller.one("CouponCodeService/PreviewCodes", bookId=book_id, count=5, sampleCount=2)
    assert len(preview["sampleCodes"]) == 2
    codes = new_codes(5)
    answers = caller.all(
        "CouponCodeService/ImportCodes",
        {"header": {"bookId": book_id, "requestId": unique("upload")}},
        {"chunk": {"chunkNumber": 1, "codes": codes[:3]}},
        {"chunk": {"chunkNumber": 2, "codes": codes[3:]}},
    )
    assert len(answers) >= 2
    made = caller.all(
        "CouponCodeService/GenerateCodes",
        {"bookId": book_id, "count": 5, "requestId": unique("request")},
    )
    assert int(made[-1]["generatedCount"]) == 5
    changed = caller.change(
        "CouponBookService/UpdateCouponBook",
        couponBook={"bookId": book_id, "name": "Ünïcode ✓"},
        updateMask={"paths": ["name"]},
    )
    assert changed["couponBook"]["name"] == "Ünïcode ✓"
    for verb, state in (("Activate", "ACTIVE"), ("Pause", "PAUSED"), ("Activate", "ACTIVE")):
        answer = caller.change(f"CouponBookService/{verb}CouponBook", bookId=book_id)
        assert answer["couponBook"]["state"] == f"COUPON_BOOK_STATE_{state}"
    got = caller.one("CouponBookService/GetCouponBook", bookId=book_id)["couponBook"]
    assert got["limits"]["maxRedemptionsPerCode"] == 2
    listed = caller.one("CouponBookService/ListCouponBooks", businessId=book["businessId"])
    assert [it["bookId"] for it in listed["couponBooks"]] == [book_id]
    exported = caller.all("CouponCodeService/ExportCodes", {"bookId": book_id})
    assert sum(len(it["codes"]) for it in exported) == 10
    assert len(caller.one("CouponCodeService/ListCodes", bookId=book_id)["codes"]) == 10
    for verb, state in (("Disable", "DISABLED"), ("Enable", "AVAILABLE")):
        caller.change(f"CouponCodeService/{verb}Code", code=codes[0])
        found = caller.one("CouponCodeService/GetCode", code=codes[0])["couponCode"]
        assert found["state"] == f"COUPON_CODE_STATE_{state}"
    return book_id, codes


def assign_codes(caller: Caller, book_id: str, codes: list[str]) -> None:
    """Assign codes to users, and revoke one."""
    user = unique("user")
    caller.change("AssignmentService/AssignCode", code=codes[1], userId=user)
    caller.change("AssignmentService/AssignRandomCode", bookId=book_id, userId=user)
    given = caller.change(
        "AssignmentService/BatchAssignRandomCodes",
        bookId=book_id,
        userIds=[unique("user"), unique("user")],
    )
    assert len(given["results"]) == 2
    coupons = caller.one("AssignmentService/ListUserCoupons", userId=user)["coupons"]
    assert len(coupons) == 2
    listed = caller.one("AssignmentService/ListAssignments", bookId=book_id)["assignments"]
    assert len(listed) == 4
    receiver = unique("user")
    caller.change(
        "AssignmentService/TransferAssignment",
        code=codes[1],
        fromUserId=user,
        toUserId=receiver,
    )
    caller.change("AssignmentService/RevokeAssignment", code=codes[1], userId=receiver)


def lock_codes(caller: Caller, book_id: str, code: str) -> None:
    """Lock a code, extend the lock, and release it."""
    user = unique("user")
    locked = caller.change("RedemptionService/LockCode", code=code, userId=user, ttl="30s")
    lock_id = locked["lock"]["lockId"]
    extended = caller.change(
        "RedemptionService/ExtendLock", lockToken=locked["lockToken"], ttl="60s"
    )
    assert extended["lock"]["lockId"] == lock_id
    for whose in ({"userId": user}, {"bookId": book_id}):
        listed = caller.one("RedemptionService/ListLocks", **whose)["locks"]
        assert [it["lockId"] for it in listed] == [lock_id]
    caller.change("RedemptionService/UnlockCode", lockToken=extended["lockToken"])
    lock = caller.one("RedemptionService/GetLock", lockId=lock_id)["lock"]
    assert lock["state"] == "LOCK_STATE_RELEASED"


def redeem_codes(caller: Caller, book_id: str, codes: list[str]) -> None:
    """Redeem codes singly and in a batch, and roll one redemption back."""
    user, amount = unique("user"), {"amountMinor": "1000", "currencyCode": "EUR"}
    valid = caller.one(
        "RedemptionService/ValidateCode", code=codes[0], userId=user, orderAmount=amount
    )
    assert valid["valid"]
    qualified = caller.one(
        "RedemptionService/QualifyCoupons", codes=codes[:1], userId=user, orderAmount=amount
    )
    assert [it["redeemable"] for it in qualified["coupons"]] == [True]
    redeemed = caller.change(
        "RedemptionService/RedeemCode",
        code=codes[0],
        userId=user,
        orderId="order 1",
        orderAmount=amount,
    )
    redemption_id = redeemed["redemption"]["redemptionId"]
    assert int(redeemed["redemption"]["discount"]["amountMinor"]) == 100
    half = {**amount, "amountMinor": "500"}
    adjusted = caller.change(
        "RedemptionService/AdjustRedemption", redemptionId=redemption_id, orderAmount=half
    )
    assert int(adjusted["redemption"]["discount"]["amountMinor"]) == 50
    batch = caller.change(
        "RedemptionService/BatchRedeemCodes",
        items=[{"code": code, "userId": user} for code in codes[2:4]],
        mode="BATCH_MODE_ALL_OR_NOTHING",
    )
    assert batch["redeemedCount"] == 2
    caller.change("RedemptionService/RollbackRedemption", redemptionId=redemption_id)
    found = caller.one("RedemptionService/GetRedemption", redemptionId=redemption_id)
    assert found["redemption"]["state"] == "REDEMPTION_STATE_ROLLED_BACK"
    listed = caller.one("RedemptionService/ListRedemptions", userId=user)["redemptions"]
    assert len(listed) == 3
    refusals = caller.one("RedemptionService/ListRefusals", userId=user)
    assert not refusals.get("nextPageToken")
    stats = caller.one("CouponBookService/GetCouponBookStats", bookId=book_id)["stats"]
    assert int(stats["redemptionCount"]) == 2
    redeem = {"code": codes[4], "userId": user, "requestId": unique("request")}
    answers = caller.all(
        "RedemptionService/Checkout",
        {"operations": [{"tag": 1, "redeemCode": redeem}, {"tag": 2, "unlockCode": {}}]},
    )
    results = {int(it["tag"]): it for answer in answers for it in answer["results"]}
    assert results[1]["redeemCode"]["redemption"]["code"] == codes[4]
    assert results[2]["error"]["error"]["reason"] == "ERROR_REASON_INVALID_ARGUMENT"


def close_book(caller: Caller, book_id: str, codes: list[str]) -> None:
    """Disable codes at once, close the book, and read the ledger."""
    request = {"bookId": book_id, "requestId": unique("request"), "list": {"codes": codes}}
    done = caller.all("CouponCodeService/ChangeCodes", {**request, "change": "CODE_CHANGE_DISABLE"})
    assert int(done[-1]["changedCount"]) == len(codes)
    caller.change("CouponBookService/CloseCouponBook", bookId=book_id)
    events = caller.one("AuditService/ListAuditEvents", bookId=book_id, pageSize=100)["events"]
    assert events[0]["type"] == "AUDIT_EVENT_TYPE_BOOK_CLOSED"
    watch = {"bookId": book_id, "stopAtEnd": True}
    watched = [
        event
        for message in caller.all("AuditService/WatchAuditEvents", watch)
        for event in message.get("events", ())
    ]
    assert {it["eventId"] for it in watched} >= {it["eventId"] for it in events}
    assert watched[-1]["type"] == "AUDIT_EVENT_TYPE_BOOK_CLOSED"
    user = unique("forgotten")
    erased = caller.all("AuditService/EraseUser", {"userId": user, "requestId": unique("request")})
    assert erased[-1]["erasure"]["state"] == "ERASURE_STATE_ERASED"
    found = caller.one("AuditService/GetErasure", userId=user)
    assert found["erasure"] == erased[-1]["erasure"]
    prove_the_ledger(caller, events[0]["eventId"])


def prove_the_ledger(caller: Caller, event_id: str) -> None:
    """Verify the ledger, and get a proof and a checkpoint of it."""

    def is_sealed() -> bool:
        verified = caller.all("AuditService/VerifyAudit", {})[-1]
        assert verified["done"]
        return not int(verified.get("unsealedRowCount", 0)) and bool(verified.get("checkpoint"))

    until(is_sealed)
    proof = caller.one("AuditService/GetAuditProof", eventId=event_id)
    assert proof["facts"]
    newest = caller.one("AuditService/GetAuditCheckpoint")
    assert newest["publicKey"] == proof["publicKey"]
