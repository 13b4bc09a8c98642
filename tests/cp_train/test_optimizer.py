"""Adam in other coordinates, against Adam on those coordinates themselves."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cp_train.optimizer import Adam
from cp_train.phase import Group, Rate

STEPS, RATE = 6, 0.05
S = torch.tensor([[2.0, 0.5], [0.5, 0.1]])
TARGET = torch.tensor([[1.0, -2.0], [0.3, 0.7], [-1.0, 0.2]])
CURVED = torch.tensor([1.0, 30.0])


def loss_of(theta: Tensor) -> Tensor:
    """A valley: the second column is steep."""
    return (CURVED * (theta - TARGET).square()).sum()


def rate(step: int) -> float:
    """The rate of a step."""
    return Rate(RATE, warmup=2, steps=STEPS)(step)


def parameter() -> nn.Parameter:
    """What is trained."""
    return nn.Parameter(torch.full_like(TARGET, 0.1))


def optimizer_of(theta: nn.Parameter, mapped: Callable[[Tensor], Tensor] | None = None) -> Adam:
    """Ours, around one parameter."""
    return Adam([Group([theta], Rate(RATE, warmup=2, steps=STEPS))], {theta: mapped} if mapped else {})


def descend(optimizer: Adam, theta: nn.Parameter, steps: range) -> None:
    """Make some steps."""
    for step in steps:
        theta.grad = None
        loss_of(theta).backward()  # type: ignore[no-untyped-call]
        optimizer.step(step)


def by_torch(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Where torch's own Adam gets to, in x."""
    x = nn.Parameter(x.clone())
    adam = torch.optim.Adam([x])
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = rate(step)
        adam.zero_grad()
        loss_of(value(x)).backward()  # type: ignore[no-untyped-call]
        adam.step()
    return x.detach()


def test_without_a_map_it_is_adam() -> None:
    theta = parameter()
    descend(optimizer_of(theta), theta, range(STEPS))
    torch.testing.assert_close(theta.detach(), by_torch(lambda x: x, parameter()))


def test_with_a_map_it_is_adam_in_the_coordinates_of_the_map() -> None:
    theta, start = parameter(), parameter().detach()
    descend(optimizer_of(theta, lambda x: x @ S), theta, range(STEPS))
    x = by_torch(lambda x: start + x @ S, torch.zeros_like(start))
    torch.testing.assert_close(theta.detach(), start + x @ S)
    plain = parameter()
    descend(optimizer_of(plain), plain, range(STEPS))
    assert not torch.allclose(plain, theta, atol=1e-2), "the coordinates do matter"


def test_a_parameter_without_a_gradient_stays() -> None:
    theta = parameter()
    optimizer_of(theta, lambda x: x @ S).step(0)
    assert torch.equal(theta, parameter())


def test_restored_it_goes_on_as_if_nothing_had_been() -> None:
    whole, theta = parameter(), parameter()
    descend(optimizer_of(whole, lambda x: x @ S), whole, range(STEPS))
    first = optimizer_of(theta, lambda x: x @ S)
    descend(first, theta, range(3))
    state = {key: value.clone() for key, value in first.state().items()}
    second = optimizer_of(theta, lambda x: x @ S)
    second.restore(state)
    descend(second, theta, range(3, STEPS))
    assert torch.equal(whole, theta)
