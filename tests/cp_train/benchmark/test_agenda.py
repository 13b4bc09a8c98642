"""What the whole comparison consists of."""

import pytest

from cp_train.benchmark.agenda import AGENDAS, LEADING, Item
from cp_train.benchmark.contenders import parse
from cp_train.benchmark.settings import BUDGETS
from cp_train.benchmark.setups import SETUPS
from cp_train.benchmark.sweep import GRIDS
from cp_train.methods import METHODS


def methods(items: list[Item]) -> set[str]:
    return {contender.label for item in items for contender in parse(item.methods)}


def test_every_budget_has_an_agenda() -> None:
    assert AGENDAS.keys() == BUDGETS.keys()


@pytest.mark.parametrize("budget", AGENDAS)
def test_hyper_parameters_come_first_and_every_method_is_compared(budget: str) -> None:
    items = list(AGENDAS[budget])
    assert all(item.setup in SETUPS and (item.setup == "tuning" or not item.sweep) for item in items)
    assert [item.sweep for item in items] == [True] + [False] * (len(items) - 1)
    assert set(LEADING) <= methods(items[:1]) <= GRIDS.keys()
    assert methods([item for item in items if item.setup == "six"]) == METHODS.keys()
    leading = next(item for item in items if item.setup == "six")
    assert leading.methods == LEADING
    assert (leading.orders or 0) * leading.seeds >= 3


def test_the_full_one_covers_every_setup_and_every_study() -> None:
    items = list(AGENDAS["full"])
    assert {item.setup for item in items} == SETUPS.keys()
    assert methods(items[:1]) == METHODS.keys(), "as many candidates for every method"
    studied = {label.split("=")[0].partition(":")[2] for label in methods(items) if ":" in label}
    assert studied == {"fisher.earlier", "fisher.tau", "fisher.trials", "fisher.beta"}
    assert {"finetune", "ewc_dc"} <= methods([item for item in items if item.setup == "fifty"])
    assert "per_concept" in methods([item for item in items if item.setup == "two-in-one-prompt"])
