"""New codes are made ready in the order of the table's key."""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import pytest

from coupon_service.model.codes import CodeFormat, bucket_of, generate
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.bulk.new_codes import PART, NewCodes


@pytest.mark.parametrize("count", [0, 1, PART, 2 * PART + 7])
async def test_codes_are_in_the_order_of_the_key_in_parts(count: int) -> None:
    codes = generate(CodeFormat(), count)
    lane = BulkLane(cast("Any", None))
    parts = await NewCodes.in_parts(uuid4(), 1, codes, lane)
    in_order = [code for part in parts for code in part.codes]
    assert in_order == sorted(codes, key=lambda code: (bucket_of(code), code))
    assert all(len(part.codes) == PART for part in parts[:-1])
