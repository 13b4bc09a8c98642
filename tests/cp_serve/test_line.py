"""Long work in turn: how much may wait, and what becomes of work that nobody waits for."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from cp_serve.line import Check, GivenUpError, Line
from services.errors import BusyError, QuotaError
from tests.cp_serve.drawings import PATIENCE


def test_a_full_line_says_when_to_come_again() -> None:
    may_end = threading.Event()

    def work(_: Check) -> str:
        assert may_end.wait(PATIENCE)
        return "done"

    async def queue() -> None:
        waiting = [asyncio.create_task(line.run(work)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 others") as full:
            await line.run(work)
        assert full.value.retry_after
        may_end.set()
        assert await asyncio.gather(*waiting) == ["done"] * 2
        assert await line.run(work) == "done"

    line = Line("test", 2)
    asyncio.run(queue())
    line.close()


def test_a_person_has_half_of_the_line_and_everybody_takes_turns() -> None:
    served, begun, may_end = list[str](), threading.Event(), threading.Event()

    def work_of(person: str) -> Callable[[Check], None]:
        def work(_: Check) -> None:
            served.append(person)
            begun.set()
            assert may_end.wait(PATIENCE)

        return work

    async def queue() -> None:
        people = ["ann", "ann", "ann", "ann", "bob", "bob", "cleo"]
        waiting = [asyncio.create_task(line.run(work_of(person), person=person)) for person in people]
        await asyncio.to_thread(begun.wait, PATIENCE)
        with pytest.raises(QuotaError, match="4 requests of yours") as own:
            await line.run(work_of("ann"), person="ann")
        assert own.value.retry_after == 3, "seconds: bob and cleo come before her next one is done"
        waiting.append(asyncio.create_task(line.run(work_of("bob"), person="bob")))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="8 others"):
            await line.run(work_of("dan"), person="dan")
        may_end.set()
        await asyncio.gather(*waiting)
        assert served == ["ann", "bob", "cleo", "ann", "bob", "ann", "bob", "ann"]
        assert await line.run(lambda _: "done", person="ann") == "done"

    line = Line("test", 8)
    asyncio.run(queue())
    line.close()


def test_whoever_leaves_the_line_gives_the_place_back() -> None:
    begun, may_end, served = threading.Event(), threading.Event(), list[str]()

    def work(_: Check) -> None:
        begun.set()
        assert may_end.wait(PATIENCE)

    async def leave() -> None:
        first = asyncio.create_task(line.run(work, person="bob"))
        await asyncio.to_thread(begun.wait, PATIENCE)
        for _ in range(3):
            gone = asyncio.create_task(line.run(lambda _: served.append("gone"), person="ann"))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        last = asyncio.create_task(line.run(lambda _: served.append("ann"), person="ann"))
        may_end.set()
        await asyncio.gather(first, last)
        assert served == ["ann"]

    line = Line("test", 2)
    asyncio.run(leave())
    line.close()


def test_work_that_nobody_waits_for_ends_at_its_next_check() -> None:
    at_work, left, ended, begun = threading.Event(), threading.Event(), threading.Event(), []

    def work(check: Check) -> None:
        begun.append(1)
        check()
        at_work.set()
        assert left.wait(PATIENCE)
        try:
            check()
        except GivenUpError:
            ended.set()
            raise

    async def leave() -> None:
        tasks = [asyncio.create_task(line.run(work)) for _ in range(3)]
        await asyncio.to_thread(at_work.wait, PATIENCE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left.set()
        assert await asyncio.to_thread(ended.wait, PATIENCE)
        assert await line.run(lambda check: check()) is None, "the next one has its turn"

    line = Line("test", 3)
    asyncio.run(leave())
    line.close()
    assert begun == [1], "those in line behind it were not begun"
