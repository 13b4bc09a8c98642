"""Outages that end, and some that do not."""

import pytest

from services import patience
from services.errors import ConflictError, UnavailableError
from services.patience import outlast


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST", 0.001)
    monkeypatch.setattr(patience, "_LONGEST", 0.01)


def test_work_is_done_when_the_outage_ends_and_waiting_is_said_once() -> None:
    tries, said = iter([UnavailableError("MLflow is away."), UnavailableError("The store is."), "done"]), list[str]()

    def work() -> str:
        match next(tries):
            case UnavailableError() as error:
                raise error
            case result:
                return str(result)

    assert outlast(work, seconds=60, say=said.append) == "done"
    assert said == ["waiting for at most 60 s: MLflow is away."]


def test_it_does_not_wait_for_ever_nor_for_what_is_no_outage() -> None:
    tried = []

    def away() -> None:
        tried.append(1)
        raise UnavailableError("MLflow is away.")

    with pytest.raises(UnavailableError):
        outlast(away, seconds=0.05, say=lambda _: None)
    assert len(tried) >= 2, "again after the first failure, and when the time is over"
    tried.clear()
    with pytest.raises(UnavailableError):
        outlast(away, seconds=0, say=lambda _: None)
    assert len(tried) == 1

    def conflict() -> None:
        tried.append(1)
        raise ConflictError("no")

    tried.clear()
    with pytest.raises(ConflictError):
        outlast(conflict, seconds=60, say=lambda _: None)
    assert len(tried) == 1
