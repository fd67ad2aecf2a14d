"""Work of a move that takes long."""

from __future__ import annotations

from threading import Event

import pytest

from coupon_service.store.moving import sides


def test_work_that_takes_long_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "TOLD_EVERY_S", 0.01)
    released = Event()
    told = sides.told_while(released.wait, "comparing")
    assert [next(told), next(told)] == ["comparing", "comparing"]
    released.set()
    assert set(told) <= {"comparing"}


def test_work_that_fails_says_so() -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        list(sides.told_while(fail, "comparing"))
