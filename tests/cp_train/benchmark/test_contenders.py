"""How contenders are written, and the settings they end up with."""

from typing import Any

import pytest

from cp_train.benchmark.contenders import Contender, depth, inherited, parse, spell
from cp_train.benchmark.settings import Examination, Settings
from cp_train.methods import METHODS
from services.errors import InputError


def test_all_is_every_method() -> None:
    assert [contender.label for contender in parse(["all"])] == list(METHODS)


def test_names_may_be_apart_or_joined_and_count_once() -> None:
    assert [c.label for c in parse(["ewc,finetune", "ewc"])] == ["ewc", "finetune"]


def test_a_study_is_one_setting_at_several_values() -> None:
    found = [dict(contender.overrides)["fisher.earlier"] for contender in parse(["study:k"])]
    assert found == [0, 1, 2, 5, 9]


def test_settings_of_its_own_beat_chosen_ones_which_beat_common_ones() -> None:
    settings = Settings(steps=7, chosen={"ewc_dc": {"weight": 3.0, "fisher.beta": 0.25}})
    (plain, special) = parse(["ewc_dc", "ewc_dc:weight=2:fisher.tau=0.5"])
    config = settings.learning(plain, seed=11)
    assert (config.weight, config.fisher.beta, config.loop.steps, config.loop.seed) == (3.0, 0.25, 7, 11)
    config = settings.learning(special, seed=0)
    assert (config.weight, config.fisher.beta, config.fisher.tau) == (2, 0.25, 0.5)


def test_what_is_composed_of_others_takes_their_choices_over() -> None:
    chosen = {
        "finetune": {"loop.lr": 2e-3},
        "ewc_dc": {"weight": 10.0},
        "dsc": {"dsc.steps": 50},
        "dsc_ewc_dc": {"weight": 1.0},
        "kv": {"kv.weight": 3.0},
        "per_concept": {"loop.lr": 5e-4},
    }
    assert inherited("ewc_dc_kv", chosen) == {"loop.lr": 2e-3, "weight": 10.0, "kv.weight": 3.0}
    assert inherited("dsc_ewc_dc_kv", chosen) == {"loop.lr": 2e-3, "dsc.steps": 50, "weight": 1.0, "kv.weight": 3.0}
    assert inherited("clora", chosen) == {"loop.lr": 2e-3}
    assert inherited("per_concept", chosen) == {"loop.lr": 5e-4}
    assert inherited("ewc_vera", chosen) == {}, "another learning rate altogether"
    config = Settings(chosen=chosen).learning(parse(["dsc_ewc_dc_kv"])[0], seed=0)
    assert (config.loop.lr, config.dsc.steps, config.weight, config.kv.weight) == (2e-3, 50, 1.0, 3.0)


def test_what_others_are_composed_of_comes_before_them() -> None:
    assert [depth(method) for method in ("finetune", "ewc_dc", "dsc_ewc_dc", "dsc_ewc_dc_kv")] == [0, 1, 2, 3]
    assert {depth(method) for method in METHODS} == {0, 1, 2, 3}


def test_what_is_no_lora_has_a_learning_rate_of_its_own() -> None:
    rates = {c.method: Settings().learning(c, 0).loop.lr for c in parse(["finetune", "custom_diffusion", "ewc_vera"])}
    assert rates == {"finetune": 1e-3, "custom_diffusion": 1e-4, "ewc_vera": 1e-2}


def test_a_budget_reaches_every_method_alike() -> None:
    settings = Settings(steps=7, dsc_steps=3, fisher_batches=11, precision="bfloat16")
    for contender in parse(["all"]):
        config = settings.learning(contender, 5, gamma=0.95)
        assert (config.loop.steps, config.loop.seed, config.loop.precision) == (7, 5, "bfloat16")
        assert (config.dsc.steps, config.fisher.batches, config.fisher.gamma) == (3, 11, 0.95)


def test_a_label_says_what_it_was_made_from() -> None:
    overrides = {"weight": 0.1, "loop.precision": "bfloat16"}
    (contender,) = parse([spell("ewc", overrides)])
    assert contender == Contender("ewc:weight=0.1:loop.precision=bfloat16", "ewc", tuple(overrides.items()))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nothing", "there is no 'nothing'"),
        ("ewc:weight", "write 'weight' as key=value"),
        ("ewc:weihgt=1", "there is no setting 'weihgt'"),
        ("ewc:loop=1", "there is no setting 'loop'"),
        ("ewc:loop.lr=-1", "learning rates must be above 0"),
        ("ewc:weight=much", "'ewc:weight=much'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings().learning(parse([spec])[0], seed=0)


@pytest.mark.parametrize(
    "wrong", [{"pictures": 6}, {"pictures": 4, "glimpses": 3}, {"steps": 0}, {"precision": "float8"}]
)
def test_an_examination_that_does_not_add_up_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pictures|precision"):
        Examination(**wrong)
