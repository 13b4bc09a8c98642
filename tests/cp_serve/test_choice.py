"""Which version a request gets while the registry does not answer."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cp_serve.bank import Bank
from cp_serve.choice import Choice, Chooser
from cp_serve.metrics import Metrics
from cp_serve.rollout import Rollout
from services.base_model import BaseModel
from services.canary import CANARY, Targets
from services.errors import BusyError, InputError, UnavailableError
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.versions import adapter_of


@dataclass
class Outage:
    """A registry that has version 1 of everything, and does not answer for long once it is `down`."""

    base: BaseModel
    down: bool = False
    asked: list[tuple[str, int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def fetch(self, lineage: str, number: int, **_: object) -> tuple[Any, Any]:
        self.asked.append((lineage, number))
        self._answer()
        return SimpleNamespace(digest=f"sha256:{number}"), adapter_of(self.base, {"fox": 1})

    def resolve(self, _lineage: str, _ref: str) -> int:
        self._answer()
        return 1

    def _answer(self) -> None:
        if self.down:
            assert self.over.wait(PATIENCE)
            raise UnavailableError("away")


@pytest.fixture
def registry(tiny_base: BaseModel) -> Iterator[Outage]:
    outage = Outage(tiny_base)
    yield outage
    outage.over.set()


def chooser_of(registry: Outage, bank: Bank, **seen: Targets) -> Chooser:
    return Chooser(registry, bank, Rollout(), Metrics(), seen=lambda: seen)  # type: ignore[arg-type]


def test_a_version_in_memory_is_had_while_all_who_fetch_wait(registry: Outage, tiny_base: BaseModel) -> None:
    bank: Bank = Bank(registry, tiny_base)  # type: ignore[arg-type]
    chooser = chooser_of(registry, bank)

    async def choose() -> None:
        there = (await chooser.choose("pets", "1")).slot
        bank.point("pets", 1)
        registry.down = True
        others = [asyncio.create_task(chooser.choose(f"other-{number}", "1")) for number in range(40)]
        await asyncio.sleep(0)
        for version in ("1", "live"):
            assert (await asyncio.wait_for(chooser.choose("pets", version), PATIENCE)).slot is there
        assert not any(task.done() for task in others)
        registry.over.set()
        answers = await asyncio.gather(*others, return_exceptions=True)
        assert {type(answer) for answer in answers} == {UnavailableError}

    asyncio.run(choose())
    chooser.close()


def test_all_who_wait_for_one_version_leave_the_other_threads_to_others(registry: Outage, tiny_base: BaseModel) -> None:
    chooser = chooser_of(registry, Bank(registry, tiny_base))  # type: ignore[arg-type]

    async def choose() -> None:
        registry.down = True
        slow = [asyncio.create_task(chooser.choose("slow", "1")) for _ in range(40)]
        await asyncio.sleep(0.1)
        registry.down = False
        assert (await asyncio.wait_for(chooser.choose("pets", "1"), PATIENCE)).slot
        slow[0].cancel()
        await asyncio.sleep(0)
        registry.over.set()
        answers = await asyncio.gather(*slow, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert {type(answer) for answer in answers[1:]} == {UnavailableError}, "who gave up left it to the others"
        assert registry.asked.count(("slow", 1)) == 1
        assert (await chooser.choose("slow", "1")).slot, "it is tried again"

    asyncio.run(choose())
    chooser.close()


def test_what_says_nothing_of_a_version_is_no_good_answer_either(registry: Outage, tiny_base: BaseModel) -> None:
    chooser = chooser_of(registry, Bank(registry, tiny_base))  # type: ignore[arg-type]
    recorded: list[bool] = []

    def record(_lineage: str, *, canary: bool, failed: bool) -> None:
        assert canary
        recorded.append(failed)

    chooser._record = record  # type: ignore[method-assign]
    choice = Choice("pets", None, CANARY)
    others = (
        BusyError("full"),
        UnavailableError("away"),
        InputError("<dgo> is not a concept"),
        asyncio.CancelledError(),
    )
    for error in (*others, ValueError("x")):
        with pytest.raises(type(error)), chooser.counted(choice):
            raise error
    with chooser.counted(choice):
        pass
    assert recorded == [True, False], "of the failure that is the version's, and of the answer"
    chooser.close()


def test_the_candidate_of_an_outage_is_the_one_last_heard_of(registry: Outage, tiny_base: BaseModel) -> None:
    bank: Bank = Bank(registry, tiny_base)  # type: ignore[arg-type]
    chooser = chooser_of(registry, bank, pets=Targets(None, 1, None), dogs=Targets(None, None, None))

    async def choose() -> None:
        there = (await chooser.choose("pets", "candidate")).slot
        registry.down = True
        registry.over.set()
        assert (await chooser.choose("pets", "candidate")).slot is there
        for lineage, version in (("dogs", "candidate"), ("pets", "live"), ("cats", "candidate")):
            with pytest.raises(UnavailableError):
                await chooser.choose(lineage, version)

    asyncio.run(choose())
    chooser.close()
