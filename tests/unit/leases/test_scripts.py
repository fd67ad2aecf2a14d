"""What the lease module sends to Redis."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from coupon_service.leases.results import IndexedLock, LeaseKey
from coupon_service.leases.scripts import LeaseScripts, index_member, indexed_lock
from coupon_service.model.normalization import is_code
from coupon_service.redis_client.exchange import RedisCommand


def keys(command: RedisCommand) -> list[str]:
    _evalsha, _sha, count, *rest = command
    return [str(key) for key in rest[: int(count)]]


@pytest.mark.parametrize("code", ["CODE1", "DANKEFÜR100", "नमस्ते", "𞤀"], ids=ascii)
@pytest.mark.parametrize("user_id", ["user-1", "{other}", "}{", "{}", "CODE2"])
def test_a_script_on_a_code_touches_one_slot_of_a_cluster(code: str, user_id: str) -> None:
    scripts = LeaseScripts()
    lock = LeaseKey(code, "book", user_id, "lock")
    on_a_code = (
        scripts.acquire(lock, grace_ms=1),
        scripts.acquire_transient(code, "attempt", user_id, 1),
        scripts.peek(code, user_id, "lock"),
        scripts.release(lock),
        scripts.extend(lock, expire_ms=1, grace_ms=1),
    )

    slots = {key_slot(key.encode()) for command in on_a_code for key in keys(command)}

    assert slots == {key_slot(code.encode())}


@pytest.mark.parametrize(
    "brace", ["{", "}", "\ufe5b", "\ufe5c", "\uff5b", "\uff5d", "{}"], ids=ascii
)
def test_no_code_can_break_the_hash_tag_of_its_keys(brace: str) -> None:
    for text in (brace, f"CODE{brace}1", f"{brace}CODE1", f"CODE1{brace}"):
        assert not is_code(text)


@pytest.mark.parametrize("strange", ["a:b", "{x}", "ü", " ", "", "\n"])
def test_an_index_entry_has_code_book_user_and_lock_whatever_they_contain(strange: str) -> None:
    key = LeaseKey("CODE1", strange, strange, strange)

    assert indexed_lock(index_member(key), "17") == IndexedLock(key, 17)


def test_every_script_is_sent_by_the_hash_of_its_text() -> None:
    scripts = LeaseScripts()

    sha = next(iter(scripts.sources))

    assert scripts.acquire(LeaseKey("C", "b", "u", "l"), grace_ms=1)[:2] == ("EVALSHA", sha)
