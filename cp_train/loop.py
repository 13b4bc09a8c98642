"""The step loop: runs phases one after the other, adding the method's penalty to each step's loss; knows no method.

Every random draw of step i comes from (seed, i) alone, so a run resumed from any checkpoint ends with the same weights,
bit for bit, and N workers draw the same global batch as one.
"""

from collections.abc import Callable, Sequence

import torch

from cp_train.methods import Method
from cp_train.optimizer import Adam
from cp_train.phase import Phase, State
from cp_train.student import Student

StepHook = Callable[[int, float, Callable[[], State]], None]


class Loop:
    """The optimizer and its state around one student.

    Args:
        student: trained in place.
        method: adds its penalty, and chooses the coordinates that are descended in, in every phase.
        phases: what is minimised, in this order.
    """

    def __init__(self, student: Student, method: Method, phases: Sequence[Phase]) -> None:
        self.student, self.method, self.phases = student, method, phases
        self.steps = sum(phase.steps for phase in phases)
        self.step = 0

    def run(self, hook: StepHook) -> None:
        """Train to the last step; `hook(step, loss, state)` is called after every step, `state()` is a checkpoint."""
        while self.step < self.steps:
            loss = self.advance()
            hook(self.step, loss, self.state)

    def _place(self) -> tuple[Phase, int]:
        """The phase of the present step, and how many of its steps are done."""
        done = self.step
        for phase in self.phases:
            if done < phase.steps:
                return phase, done
            done -= phase.steps
        raise IndexError("every step is done")

    def _begin(self, phase: Phase, state: State | None) -> None:
        self.optimizer = Adam(phase.begin(state), self.method.coordinates(self.student))

    def advance(self) -> float:
        """Make the present step of the present phase; returns its loss without the penalty."""
        phase, done = self._place()
        if done == 0:
            self._begin(phase, None)
        self.student.zero_grad()
        loss = phase.loss(self.step)
        penalty = self.method.penalty(self.student)
        (loss if penalty is None else loss + penalty).backward()
        self.optimizer.step(done)
        self.step += 1
        return loss.item()

    def state(self) -> State:
        """Everything a resumed run needs, as flat tensors."""
        state = {f"student.{name}": value.detach() for name, value in self.student.named_parameters()}
        if self.step < self.steps and self._place()[1] > 0:  # else the next phase begins afresh
            state |= {f"phase.{key}": value for key, value in self._place()[0].state().items()}
            state |= {f"optimizer.{key}": value for key, value in self.optimizer.state().items()}
        return {**{k: v.clone().contiguous() for k, v in state.items()}, "step": torch.tensor(self.step)}

    def restore(self, state: State) -> None:
        """Continue from what `state` returned."""
        self.step = int(state["step"])
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                parameter.copy_(state[f"student.{name}"])
        if self.step < self.steps and self._place()[1] > 0:
            self._begin(self._place()[0], _under("phase.", state))
            self.optimizer.restore(_under("optimizer.", state))


def _under(prefix: str, state: State) -> State:
    """The part of a checkpoint whose keys begin so, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
