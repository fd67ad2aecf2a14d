"""The clients for Python programs, as one."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

from coupon_service.client import AsyncCouponClient, CouponClient


class Either:
    """One of the clients, with methods that are awaited, and lists of what is iterated over.

    `called`: the methods that were.
    """

    def __init__(self, client: CouponClient | AsyncCouponClient) -> None:
        self.client = client
        self.called = set[str]()

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self.client, name)(*args, **kwargs)
            if isinstance(result, AsyncIterator):
                items: list[Any] = [it async for it in result]  # pyright: ignore[reportUnknownVariableType]
                return items
            if inspect.isgenerator(result):
                return list(result)
            return await result if inspect.isawaitable(result) else result

        self.called.add(name)
        return call
