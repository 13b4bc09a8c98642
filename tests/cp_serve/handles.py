"""A replica's handle as Serve offers it, without Ray: everything that crosses is a copy, and a replica may die."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any, Self

from ray.exceptions import ActorDiedError

_END = object()


def copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


class Handle:
    """Some object's handle; `others` are replicas as well, which only broadcasts reach.

    Attributes:
        deaths: so many of the next calls find that their replica has died, a stream after its first item.
    """

    def __init__(self, replica: Any, *others: Any) -> None:
        self._replica, self._all, self.deaths = replica, (replica, *others), 0

    def options(self, *, stream: bool) -> Self:
        assert stream
        return self

    def __getattr__(self, name: str) -> "Method":
        return Method(self, getattr(self._replica, name), streams=name == "stream")

    def broadcast(self, name: str, *arguments: object) -> "Broadcast":
        return Broadcast([Call(getattr(replica, name), arguments) for replica in self._all])

    def dies(self) -> bool:
        self.deaths -= 1
        return self.deaths >= 0


class Method:
    """A method of a handle."""

    def __init__(self, handle: Handle, method: Callable[..., Any], *, streams: bool) -> None:
        self._handle, self._method, self._streams = handle, method, streams

    def remote(self, *arguments: object) -> "asyncio.Task[Any] | Stream":
        if self._streams:
            return Stream(self._handle, self._method(*copy(arguments)))
        return asyncio.ensure_future(self._call(arguments))

    async def _call(self, arguments: tuple[object, ...]) -> Any:
        if self._handle.dies():
            raise ActorDiedError
        return copy(await self._method(*copy(arguments)))


class Stream:
    """The answer of a generator: it runs ahead of whoever reads it, in a task that `cancel` cancels, as Serve's."""

    def __init__(self, handle: Handle, items: Any) -> None:
        self._dies, self._items = handle.dies(), items
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            async for item in self._items:
                self._queue.put_nowait(copy(item))
                if self._dies:
                    self._queue.put_nowait(ActorDiedError())
                    return
        except Exception as error:
            self._queue.put_nowait(error)
        finally:
            await self._items.aclose()
            self._queue.put_nowait(_END)

    async def __anext__(self) -> Any:
        item = await self._queue.get()
        if item is _END:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self._task.cancel()


class Broadcast:
    """Calls of all replicas, of which the answers come one by one."""

    def __init__(self, calls: list["Call"]) -> None:
        self._calls = calls

    async def _fetch_replica_results_async(self) -> list["Call"]:
        return self._calls


class Call:
    """A method of one replica, called with some arguments."""

    def __init__(self, method: Callable[..., Awaitable[object]], arguments: tuple[object, ...]) -> None:
        self._method, self._arguments = method, arguments

    async def get_async(self) -> object:
        return copy(await self._method(*copy(self._arguments)))
