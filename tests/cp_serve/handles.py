"""A replica's handle as Serve offers it, without Ray: everything that crosses is a copy, and a replica may die."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any, Self

from ray.exceptions import ActorDiedError

from cp_serve.requests import ClassifyRequest, DrawRequest, Route

_END = object()


def copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


class Handle:
    """A handle of some replicas. A call goes to the first that its request was not sent to before.

    Attributes:
        deaths: so many of the next calls find that their replica has died, a stream after its first item.
    """

    def __init__(self, *replicas: Any) -> None:
        self._all, self.deaths = replicas, 0

    def options(self, *, stream: bool) -> Self:
        assert stream
        return self

    def __getattr__(self, name: str) -> "Method":
        return Method(self, name)

    def replica_for(self, arguments: tuple[object, ...]) -> Any:
        """Route a call as `OnwardRouter` does."""
        route = next((one.route for one in arguments if isinstance(one, DrawRequest | ClassifyRequest)), Route())
        onward = [replica for replica in self._all if str(id(replica)) not in route.asked]
        replica = (onward or self._all)[0]
        route.asked.add(str(id(replica)))
        route.others = len(onward[1:])
        return replica

    def broadcast(self, name: str, *arguments: object) -> "Broadcast":
        return Broadcast([Call(getattr(replica, name), arguments) for replica in self._all])

    def dies(self) -> bool:
        self.deaths -= 1
        return self.deaths >= 0


class Method:
    """A method of a handle."""

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *arguments: object) -> "asyncio.Task[Any] | Stream":
        method = getattr(self._handle.replica_for(arguments), self._name)
        if self._name == "stream":
            return Stream(self._handle, method(*copy(arguments)))
        return asyncio.ensure_future(self._call(method, arguments))

    async def _call(self, method: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
        if self._handle.dies():
            raise ActorDiedError
        return copy(await method(*copy(arguments)))


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
        """An item, which has to be fetched even if it is there."""
        await asyncio.sleep(0.001)
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
