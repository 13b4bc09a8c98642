"""What `--setup everything` makes: hyper-parameters first, then the rest, what matters most before the others.

An order has a draw of concepts and a seed of its own, and runs of one order share their concepts: nine orders with one
seed cost what three with three seeds do and say three times as much about other concepts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cp_train.methods import METHODS

LEADING = (
    "finetune",
    "clora",
    "ewc",
    "ewc_dc",
    "dsc",
    "dsc_ewc_dc",
    "kv",
    "ewc_dc_kv",
    "dsc_ewc_dc_kv",
)
"""The methods that the claims are about, and what they are compared with."""
OTHERS = tuple(name for name in METHODS if name not in LEADING)
FOUR = ("finetune", "clora", "ewc_dc", "ewc_dc_kv")
"""Those that matter most: the baseline, C-LoRA, the paper's and ours."""
PAIRED = (*FOUR, "per_concept")
"""The same, and an adapter for each concept, which has to put two of them into one picture."""
LONG = ("finetune", "ewc_dc", "ewc_dc_kv", "dsc_ewc_dc")
EVERYTHING = "everything"


@dataclass(frozen=True, kw_only=True)
class Item:
    """Some contenders on some orders and seeds of a setup.

    Attributes:
        orders: None: the setup's.
        sweep: every contender's candidates (`sweep.py`), and then the choice among them.
    """

    setup: str
    methods: tuple[str, ...]
    orders: int | None = None
    seeds: int = 1
    sweep: bool = False


AGENDAS: Mapping[str, tuple[Item, ...]] = {
    "full": (
        Item(setup="tuning", methods=(*LEADING, *OTHERS), orders=1, sweep=True),
        Item(setup="six", methods=LEADING, orders=9),
        Item(setup="six", methods=OTHERS, orders=3),
        Item(setup="fifty", methods=LONG, orders=1),
        Item(setup="two-in-one-prompt", methods=PAIRED, orders=3),
        Item(setup="ten", methods=FOUR, orders=3),
        Item(setup="nine", methods=FOUR, orders=3),
        Item(setup="ten", methods=("study:k",), orders=3),
        Item(setup="tuning", methods=("study:tau", "study:trials", "study:beta"), orders=1),
    ),
    "brief": (
        Item(setup="tuning", methods=LEADING, orders=1, sweep=True),
        Item(setup="six", methods=LEADING, orders=4),
        Item(setup="six", methods=OTHERS, orders=1),
        Item(setup="two-in-one-prompt", methods=PAIRED, orders=1),
    ),
}
"""By budget; docs/method.md says how long each takes."""
