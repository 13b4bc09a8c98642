"""The methods there are."""

import pytest

from cp_train.methods import DEFAULT, METHODS, PRODUCT, find_method, product_method
from cp_train.methods.base import Method
from cp_train.methods.composed import EWCDCKV
from services.errors import InputError


def every(kind: type[Method]) -> list[type[Method]]:
    return list(dict.fromkeys([kind, *(sub for direct in kind.__subclasses__() for sub in every(direct))]))


def test_every_method_there_is_has_a_name_of_its_own_and_is_found_by_it() -> None:
    methods = every(Method)[1:]
    assert len({method.name for method in methods}) == len(methods)
    assert {method.name: method for method in methods} == METHODS
    assert set(PRODUCT) <= METHODS.keys()
    for method in methods:
        assert find_method(method.name) is method


def test_the_default_is_ewc_with_classifier_scores_and_kv() -> None:
    assert find_method(DEFAULT) is EWCDCKV
    assert product_method(DEFAULT) is EWCDCKV
    assert PRODUCT[0] == DEFAULT


def test_only_the_ewc_of_the_denoising_loss_stores_a_fisher_without_the_contrast() -> None:
    assert {name for name, method in METHODS.items() if method.contrast == 0} == {"ewc", "dsc_ewc", "ewc_vera"}


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError) as refused:
        find_method("magic")
    assert refused.value.message.startswith("method: there is no 'magic'; choose one of ewc_dc_kv, ewc_dc, ewc, dsc, ")
    assert "per_concept" not in refused.value.message
    assert refused.value.param == "method"


@pytest.mark.parametrize("name", METHODS)
def test_the_product_takes_exactly_the_methods_that_make_one_adapter_of_constant_size(name: str) -> None:
    if name in PRODUCT:
        assert product_method(name) is METHODS[name]
        return
    with pytest.raises(
        InputError, match=f"^method: {name} is for the benchmark only, for .*; choose one of "
    ) as refused:
        product_method(name)
    assert refused.value.param == "method"
