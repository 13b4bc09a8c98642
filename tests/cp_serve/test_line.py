"""Long work in turn: how much may wait, and what becomes of work that nobody waits for."""

import asyncio
import threading

import pytest

from cp_serve.line import Check, GivenUpError, Line
from services.errors import BusyError
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
