"""Methods of the contract as methods of both clients.

Each is declared once, in `methods`: the type of its response, and a function from plain arguments
to its request. A CouponClient has it as a method that returns the response, an AsyncCouponClient as
one that is awaited; the type checker knows which.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Final, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from google.protobuf.message import Message

P = ParamSpec("P")
Response = TypeVar("Response", bound=Message)
Item = TypeVar("Item")


class Rpc(Generic[Response]):
    """A method of the contract: its path, what it answers, and whether with a stream."""

    def __init__(self, response: type[Response]) -> None:
        descriptor = response.DESCRIPTOR
        name = descriptor.name.removesuffix("Response")
        (service,) = descriptor.file.services_by_name.values()
        self.name: Final = f"{service.name}/{name}"
        self.path: Final = f"/{service.full_name}/{name}"
        self.is_streamed: Final = bool(service.methods_by_name[name].server_streaming)
        self.response: Final = response


class Blocking(Protocol):
    """A client whose methods return.

    `unary`: the response to a request. `items` of all pages, or of all messages of a stream.
    `upload`: the response to each upload, of some messages.
    """

    def unary(self, rpc: Rpc[Response], request: Message) -> Response: ...

    def items(
        self, rpc: Rpc[Response], request: Message, of: Callable[[Response], Iterable[Item]]
    ) -> Iterator[Item]: ...

    def upload(
        self, rpc: Rpc[Response], uploads: Iterable[Sequence[Message]]
    ) -> Iterator[Response]: ...


class Asynchronous(Protocol):
    """A client whose methods are awaited. Otherwise as Blocking."""

    async def unary(self, rpc: Rpc[Response], request: Message) -> Response: ...

    def items(
        self, rpc: Rpc[Response], request: Message, of: Callable[[Response], Iterable[Item]]
    ) -> AsyncIterator[Item]: ...

    def upload(
        self, rpc: Rpc[Response], uploads: Iterable[Sequence[Message]]
    ) -> AsyncIterator[Response]: ...


class Unary(Generic[P, Response]):
    """A method with one request and one response."""

    def __init__(self, rpc: Rpc[Response], request: Callable[P, Message]) -> None:
        self.rpc: Final = rpc
        self.request: Final = request

    @overload
    def __get__(self, client: None, owner: object) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, Response]: ...
    @overload
    def __get__(
        self, client: Asynchronous, owner: object
    ) -> Callable[P, Coroutine[Any, Any, Response]]: ...
    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self

        @wraps(self.request)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.unary(self.rpc, self.request(*args, **kwargs))

        return call


class Listing(Generic[P, Response, Item]):
    """A method with many items, in pages or in the messages of a stream."""

    def __init__(
        self,
        rpc: Rpc[Response],
        request: Callable[P, Message],
        items: Callable[[Response], Iterable[Item]],
    ) -> None:
        self.rpc: Final = rpc
        self.request: Final = request
        self._items = items

    @overload
    def __get__(self, client: None, owner: object) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, Iterator[Item]]: ...
    @overload
    def __get__(self, client: Asynchronous, owner: object) -> Callable[P, AsyncIterator[Item]]: ...
    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self

        @wraps(self.request)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.items(self.rpc, self.request(*args, **kwargs), self._items)

        return call


class Upload(Generic[P, Response]):
    """A method that takes many messages, and answers each of the uploads that they are made of."""

    def __init__(
        self, rpc: Rpc[Response], uploads: Callable[P, Iterable[Sequence[Message]]]
    ) -> None:
        self.rpc: Final = rpc
        self.uploads: Final = uploads

    @overload
    def __get__(self, client: None, owner: object) -> Self: ...
    @overload
    def __get__(self, client: Blocking, owner: object) -> Callable[P, Iterator[Response]]: ...
    @overload
    def __get__(
        self, client: Asynchronous, owner: object
    ) -> Callable[P, AsyncIterator[Response]]: ...
    def __get__(self, client: Any, owner: object) -> Any:
        if client is None:
            return self

        @wraps(self.uploads)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.upload(self.rpc, self.uploads(*args, **kwargs))

        return call


def unary(response: type[Response]) -> Callable[[Callable[P, Message]], Unary[P, Response]]:
    """Makes a function that builds requests a method with this response."""
    return lambda request: Unary(Rpc(response), request)


def listing(
    response: type[Response], items: Callable[[Response], Iterable[Item]]
) -> Callable[[Callable[P, Message]], Listing[P, Response, Item]]:
    """Makes a function that builds requests a method that iterates over the items of responses."""
    return lambda request: Listing(Rpc(response), request, items)


def upload(
    response: type[Response],
) -> Callable[[Callable[P, Iterable[Sequence[Message]]]], Upload[P, Response]]:
    """Makes a function that builds uploads a method that iterates over their responses."""
    return lambda uploads: Upload(Rpc(response), uploads)
