"""The setups: how many concepts are learned in a row, in how many orders, and what is looked at on the way.

After the paper's: six, ten and nine concepts, fifty for scaling, and two concepts in one prompt. `tuning` is for
choosing hyper-parameters: its concepts are never reported on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from cp_train.benchmark.subjects import Subject
from services.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One kind of sequence.

    Attributes:
        concepts: learned in a row.
        orders: sequences that are run unless told otherwise, of different concepts while there are enough.
        part: of the held-out artwork.
        every: after how many tasks all earlier concepts are drawn again; the losses are taken after every task.
        pairs: whether prompts of two concepts are drawn at the end.
        gamma: decay of the earlier tasks' Fisher information; ours.
    """

    name: str
    concepts: int
    orders: int
    part: str = "reporting"
    every: int = 1
    pairs: bool = False
    gamma: float = 1.0


SETUPS = {
    setup.name: setup
    for setup in (
        Setup(name="six", concepts=6, orders=3),
        Setup(name="ten", concepts=10, orders=1),
        Setup(name="nine", concepts=9, orders=1),
        Setup(name="fifty", concepts=50, orders=1, every=10, gamma=0.95),
        Setup(name="two-in-one-prompt", concepts=4, orders=2, pairs=True),
        Setup(name="tuning", concepts=4, orders=2, part="tuning", every=4),
    )
}


def sequence(setup: Setup, order: int, subjects: Sequence[Subject], limit: int | None = None) -> list[Subject]:
    """The subjects of one order: disjoint draws from a shuffled list; when it is used up it is shuffled anew.

    Args:
        setup: whose orders.
        order: its number, from 0.
        subjects: to choose from.
        limit: of concepts, for a short trial.

    Raises:
        InputError: there are too few subjects.
    """
    count = min(setup.concepts, limit or setup.concepts)
    if len(subjects) < count:
        raise InputError(
            f"setup: {setup.name} takes {count} concepts and there are {len(subjects)}; add folders or lower --limit.",
            param="setup",
        )
    shuffle, place = divmod(order, len(subjects) // count)
    drawn = list(subjects)
    random.Random(f"{setup.name}/{shuffle}").shuffle(drawn)  # noqa: S311
    return drawn[place * count : (place + 1) * count]
