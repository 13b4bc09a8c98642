"""Adam in coordinates of a method's choice.

With theta = theta_0 + S x and S a symmetric linear map, dL/dx = S dL/dtheta, and Adam's step dx moves theta by S dx.
Adam scales every coordinate by itself, so the choice matters: along the axes of x it descends at one speed, whatever
the loss's curvature along theta's own axes. Without a map for a parameter this is Adam itself.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cp_train.phase import Group, State

LinearMap = Callable[[Tensor], Tensor]
"""Symmetric, from tensors of a parameter's shape to tensors of that shape."""


class Adam:
    """Trains groups of parameters, each at its own rate.

    Args:
        groups: what is trained.
        coordinates: S of the parameters that have one.
    """

    def __init__(self, groups: Sequence[Group], coordinates: Mapping[nn.Parameter, LinearMap]) -> None:
        self.groups = groups
        # In place of a parameter that has a map, torch's Adam moves a step alone; it starts at zero each time, so that
        # nothing is lost in a difference.
        self.mapped = [
            (parameter, torch.zeros_like(parameter), coordinates[parameter])
            for group in groups
            for parameter in group.parameters
            if parameter in coordinates
        ]
        steps = {parameter: step for parameter, step, _ in self.mapped}
        self.adam = torch.optim.Adam([{"params": [steps.get(p, p) for p in group.parameters]} for group in groups])

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Make a step, counted from 0, along the parameters' gradients."""
        for options, group in zip(self.adam.param_groups, self.groups, strict=True):
            options["lr"] = group.rate(number)
        for parameter, step, along in self.mapped:
            step.zero_()
            step.grad = None if parameter.grad is None else along(parameter.grad)
        self.adam.step()
        for parameter, step, along in self.mapped:
            parameter.add_(along(step))

    def state(self) -> State:
        """Adam's moments, as flat tensors."""
        states = self.adam.state_dict()["state"]
        return {f"{index}.{key}": value for index, values in states.items() for key, value in values.items()}

    def restore(self, state: State) -> None:
        """Continue with what `state` returned."""
        moments: dict[int, State] = {}
        for key, value in state.items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
