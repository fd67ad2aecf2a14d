"""An example of a request for each method, as `coupon-service describe` shows it.

Names in capitals stand for ids and tokens that a service has given out.
"""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "CouponBookService/CreateCouponBook": """{
  "coupon_book": {
    "business_id": "acme",
    "name": "Summer sale",
    "discount": {"percent_off": {"basis_points": 1500}},
    "currency_code": "EUR",
    "limits": {"max_redemptions_per_code": 1},
    "lock_policy": "optional",
    "default_lock_ttl": "5m",
    "end_time": "2036-09-01"
  },
  "request_id": "summer-sale"
}""",
    "CouponBookService/GetCouponBook": '{"book_id": "BOOK_ID"}',
    "CouponBookService/ListCouponBooks": '{"state": "active", "page_size": 20}',
    "CouponBookService/UpdateCouponBook": """{
  "coupon_book": {"book_id": "BOOK_ID", "end_time": "2036-10-01"},
  "update_mask": "end_time"
}""",
    "CouponBookService/ActivateCouponBook": '{"book_id": "BOOK_ID"}',
    "CouponBookService/PauseCouponBook": '{"book_id": "BOOK_ID"}',
    "CouponBookService/CloseCouponBook": '{"book_id": "BOOK_ID"}',
    "CouponBookService/GetCouponBookStats": '{"book_id": "BOOK_ID"}',
    "CouponCodeService/PreviewCodes": '{"code_format": {"prefix": "SUMMER"}, "count": 10000}',
    "CouponCodeService/GenerateCodes": """{
  "book_id": "BOOK_ID",
  "count": 1000,
  "request_id": "first-thousand"
}""",
    "CouponCodeService/ImportCodes": """{"header": {"book_id": "BOOK_ID", "request_id": "upload-1"}}
{"chunk": {"chunk_number": 1, "codes": ["SUMMER-4711", "SUMMER-4712"]}}""",
    "CouponCodeService/ExportCodes": '{"book_id": "BOOK_ID", "state": "available"}',
    "CouponCodeService/GetCode": '{"code": "WELCOME1"}',
    "CouponCodeService/ListCodes": '{"book_id": "BOOK_ID", "state": "assigned", "page_size": 20}',
    "CouponCodeService/DisableCode": '{"code": "WELCOME1"}',
    "CouponCodeService/EnableCode": '{"code": "WELCOME1"}',
    "CouponCodeService/ChangeCodes": """{
  "book_id": "BOOK_ID",
  "change": "delete",
  "filter": {"upload_request_id": "upload-1"},
  "request_id": "undo-upload-1"
}""",
    "AssignmentService/AssignCode": '{"code": "WELCOME1", "user_id": "ann"}',
    "AssignmentService/AssignRandomCode": """{
  "book_id": "BOOK_ID",
  "user_id": "ann",
  "request_id": "newsletter-ann"
}""",
    "AssignmentService/BatchAssignRandomCodes": """{
  "book_id": "BOOK_ID",
  "user_ids": ["ann", "bob"],
  "request_id": "newsletter"
}""",
    "AssignmentService/RevokeAssignment": '{"code": "WELCOME1", "user_id": "ann"}',
    "AssignmentService/TransferAssignment": """{
  "code": "WELCOME1",
  "from_user_id": "ann",
  "to_user_id": "bob",
  "request_id": "gift-to-bob"
}""",
    "AssignmentService/ListUserCoupons": '{"user_id": "ann", "state": "active"}',
    "AssignmentService/ListAssignments": """{
  "book_id": "BOOK_ID",
  "state": "active",
  "start_time": "2026-01-01"
}""",
    "RedemptionService/ValidateCode": """{
  "code": "WELCOME1",
  "user_id": "ann",
  "order_amount": {"amount_minor": 4999, "currency_code": "EUR"}
}""",
    "RedemptionService/QualifyCoupons": """{
  "user_id": "ann",
  "codes": ["WELCOME1"],
  "order_amount": {"amount_minor": 4999, "currency_code": "EUR"}
}""",
    "RedemptionService/LockCode": '{"code": "WELCOME1", "user_id": "ann", "ttl": "5m"}',
    "RedemptionService/ExtendLock": '{"lock_token": "LOCK_TOKEN", "ttl": "5m"}',
    "RedemptionService/UnlockCode": '{"lock_token": "LOCK_TOKEN"}',
    "RedemptionService/GetLock": '{"lock_id": "LOCK_ID"}',
    "RedemptionService/ListLocks": '{"user_id": "ann"}',
    "RedemptionService/RedeemCode": """{
  "code": "WELCOME1",
  "user_id": "ann",
  "order_id": "order-4711",
  "order_amount": {"amount_minor": 4999, "currency_code": "EUR"},
  "request_id": "order-4711"
}""",
    "RedemptionService/BatchRedeemCodes": """{
  "items": [
    {"code": "WELCOME1", "user_id": "ann", "order_id": "order-4712"},
    {"code": "SUMMER-4711", "user_id": "ann", "order_id": "order-4712"}
  ],
  "mode": "all_or_nothing",
  "request_id": "order-4712"
}""",
    "RedemptionService/RollbackRedemption": '{"redemption_id": "REDEMPTION_ID"}',
    "RedemptionService/AdjustRedemption": """{
  "redemption_id": "REDEMPTION_ID",
  "order_amount": {"amount_minor": 2999, "currency_code": "EUR"},
  "request_id": "return-4711"
}""",
    "RedemptionService/GetRedemption": '{"redemption_id": "REDEMPTION_ID"}',
    "RedemptionService/ListRedemptions": '{"user_id": "ann", "page_size": 20}',
    "RedemptionService/ListRefusals": """{
  "user_id": "ann",
  "start_time": "2026-01-01",
  "page_size": 20
}""",
    "RedemptionService/Checkout": """{
  "operations": [
    {"tag": 1, "lock_code": {"code": "WELCOME1", "user_id": "ann", "ttl": "5m"}},
    {"tag": 2, "redeem_code": {"code": "SUMMER-4711", "user_id": "bob"}}
  ]
}""",
    "AuditService/ListAuditEvents": """{
  "book_id": "BOOK_ID",
  "types": ["redeemed", "rolled_back"],
  "start_time": "2026-01-01",
  "end_time": "2026-02-01"
}""",
    "AuditService/WatchAuditEvents": """{
  "types": ["redeemed", "rolled_back"],
  "start_time": "2026-01-01",
  "stop_at_end": true
}""",
    "AuditService/EraseUser": '{"user_id": "ann", "request_id": "ticket-4711"}',
    "AuditService/GetErasure": '{"user_id": "ann"}',
    "AuditService/VerifyAudit": '{"start_time": "2026-01-01"}',
    "AuditService/GetAuditProof": '{"event_id": "EVENT_ID"}',
    "AuditService/GetAuditCheckpoint": "{}",
    "Health/Check": "{}",
    "Health/List": "{}",
    "Health/Watch": '{"service": "coupon_service.v1.RedemptionService"}',
}
"""By `Service/Method`."""
