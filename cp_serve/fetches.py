"""Work on versions that takes its time, several at once, beside whoever wants it done."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

Key = tuple[str, int]
"""Lineage and number."""


class Fetches:
    """Begun, taken and counted by one thread.

    Args:
        fetch: what is done for a version.
        at_once: for so many.
        came: called, in another thread, when it is done for one; not if it failed, which may be at once and for ever.
    """

    def __init__(self, fetch: Callable[[str, int], Any], at_once: int, came: Callable[[], None]) -> None:
        self._fetch, self._came = fetch, came
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="follow")
        self._under_way: dict[Key, Future[Any]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, keys: Iterable[Key]) -> None:
        """Fetch what is not on its way yet."""
        for key in keys:
            if key not in self._under_way:
                self._under_way[key] = future = self._pool.submit(self._fetch, *key)
                future.add_done_callback(self._tell)

    def take(self, *, seconds: float = 0.0) -> dict[Key, Future[Any]]:
        """What is done, or has failed, since this was last asked; waits up to so many seconds for all of it."""
        done, _ = wait(self._under_way.values(), timeout=seconds)
        found = {key: future for key, future in self._under_way.items() if future in done}
        self._under_way = {key: future for key, future in self._under_way.items() if key not in found}
        return found

    def stop(self) -> None:
        """Finish what has begun, and begin nothing more."""
        self._pool.shutdown(cancel_futures=True)

    def _tell(self, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._came()
