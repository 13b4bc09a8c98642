"""Work that takes its time, several pieces at once, beside whoever wants it done."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, TypeVarTuple

from services.errors import UnavailableError

_Key = TypeVarTuple("_Key")
_Result = TypeVar("_Result")


def _nobody() -> None:
    """Nobody waits to be told."""


class Background(Generic[_Result, *_Key]):
    """Begun, taken and counted by one thread, which never waits for it.

    Args:
        work: what is done for a key.
        at_once: for so many keys.
        done: called, in another thread, when it is done for one, or has failed; not if somebody outside did not answer,
            which may be at once and for ever.
    """

    def __init__(self, work: Callable[[*_Key], _Result], at_once: int, done: Callable[[], None] = _nobody) -> None:
        self._work, self._done = work, done
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="follow")
        self._under_way: dict[tuple[*_Key], Future[_Result]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, keys: Iterable[tuple[*_Key]]) -> None:
        """Begin what is not under way yet."""
        for key in keys:
            if key not in self._under_way:
                self._under_way[key] = future = self._pool.submit(self._work, *key)
                future.add_done_callback(self._tell)

    def take(self) -> dict[tuple[*_Key], Future[_Result]]:
        """What is done, or has failed, since this was last asked."""
        found = {key: future for key, future in self._under_way.items() if future.done()}
        self._under_way = {key: future for key, future in self._under_way.items() if key not in found}
        return found

    def stop(self) -> None:
        """Finish what has begun, and begin nothing more."""
        self._pool.shutdown(cancel_futures=True)

    def _tell(self, future: Future[_Result]) -> None:
        if not future.cancelled() and not isinstance(future.exception(), UnavailableError):
            self._done()
