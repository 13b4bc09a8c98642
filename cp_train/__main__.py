"""The job: `python -m cp_train …`, alone or behind `ray job submit`.

Exit 0 and the outcome as JSON in the last line, or exit 1 with one line that says what is wrong.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from services.arguments import Parser
from services.errors import InputError, PalimpsestError
from services.manifest import check_name
from services.settings import get_settings
from services.telemetry import configure_logging

if TYPE_CHECKING:
    from cp_train.plan import LearningConfig
    from cp_train.request import Request

log = logging.getLogger("palimpsest.job")


@dataclass(frozen=True)
class _Setting:
    """A flag that fills one field of `LearningConfig` or of one of its parts; the default is the field's own."""

    flag: str
    part: str
    field: str
    help: str

    @property
    def name(self) -> str:
        """Of the parsed attribute."""
        return self.flag.removeprefix("--").replace("-", "_")


_SETTINGS = (
    _Setting("--rank", "", "rank", "LoRA rank of a new lineage"),
    _Setting("--crops", "", "crops", "random crops of each picture that are learned beside it, for photos"),
    _Setting("--steps", "loop", "steps", "training steps"),
    _Setting("--batch-size", "loop", "batch_size", "images a step"),
    _Setting("--lr", "loop", "lr", "learning rate of the LoRA"),
    _Setting("--token-lr", "loop", "token_lr", "learning rate of the embedding"),
    _Setting("--precision", "loop", "precision", "of training's arithmetic: float32, or bfloat16 (few CPUs have it)"),
    _Setting("--seed", "loop", "seed", "of every random draw"),
    _Setting("--fisher-batches", "fisher", "batches", "minibatches of the Fisher pass"),
    _Setting(
        "--fisher-chunk",
        "fisher",
        "chunk",
        "rows (an image under a prompt) at once in it, to bound its memory; 0: a whole minibatch",
    ),
    _Setting("--tau", "fisher", "tau", "temperature of the diffusion-classifier scores"),
    _Setting("--earlier", "fisher", "earlier", "k, earlier concepts in a minibatch of the Fisher pass"),
    _Setting("--trials", "fisher", "trials", "timesteps and noises of each image there"),
    _Setting("--beta", "fisher", "beta", "weight of the other concepts' scores"),
    _Setting("--gamma", "fisher", "gamma", "decay of the earlier tasks' Fisher information"),
    _Setting("--kv-weight", "kv", "weight", "lambda of the methods with kv"),
    _Setting("--kv-ridge", "kv", "ridge", "rho of the coordinates that they descend in; 0: the weights' own axes"),
    _Setting("--kv-prompts", "kv", "prompts", "how many prompts kv protects"),
    _Setting("--dsc-steps", "dsc", "steps", "steps of the second phase of the methods with dsc"),
    _Setting("--dsc-lr", "dsc", "lr", "its learning rate"),
    _Setting("--dsc-pool", "dsc", "pool", "minibatches on which its teachers are asked"),
)


def _parser() -> argparse.ArgumentParser:
    from cp_train.methods import DEFAULT, METHODS, PRODUCT  # after --help costs nothing more: torch takes seconds
    from cp_train.plan import LearningConfig

    parser = Parser("python -m cp_train", description="Learn one concept into a lineage's adapter.")
    add = parser.add_argument
    add("--lineage", required=True, help="whose adapter: a person or a project")
    add("--concept", required=True, metavar="NAME", help="its name; prompts write it <NAME>")
    add("--noun", required=True, help="what it is, in a word or two: mug, dog; '' if nothing fits")
    add("--images", required=True, metavar="URI", help="a directory, s3://bucket/prefix, or an intake id")
    add("--method", default=DEFAULT, help=f"one of {', '.join(PRODUCT)} (default: %(default)s)")
    add("--base", default=get_settings().base, help="embedded, a directory, or a hub id (default: %(default)s)")
    own = [(name, METHODS[name].default_weight) for name in PRODUCT]
    weights = ", ".join(f"{name} {weight:g}" for name, weight in own if weight is not None)
    add("--weight", type=float, help=f"lambda of the method's penalty (default: {weights})")
    defaults = LearningConfig.for_method(DEFAULT)
    for setting in _SETTINGS:
        default = getattr(getattr(defaults, setting.part) if setting.part else defaults, setting.field)
        add(setting.flag, type=type(default), help=f"{setting.help} (default: {default})")
    add("--actor", default="", metavar="PERSON", help="who asks, for the lineage's history (default: the user)")
    add("--place", type=int, metavar="N", help="in the lineage's queue, if one was taken when this was submitted")
    add("--again", action="store_true", help="learn even if the same was learned before")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    configure_logging()
    try:
        outcome = _learn(_parser().parse_args(arguments))
    except PalimpsestError as error:
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("error: The job was stopped; nothing was published.", file=sys.stderr, flush=True)
        return 1
    print(outcome, flush=True)
    return 0


def _stopped(_number: int, _frame: object) -> NoReturn:
    """`ray job stop` sends SIGTERM: leave as if interrupted, so that images, lease and run are cleaned up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise KeyboardInterrupt


def _learn(options: argparse.Namespace) -> str:
    from cp_train.job import learn
    from cp_train.request import Place

    settings = get_settings()
    with Place(options.lineage, options.place, settings).given_up_on_failure():
        request = _request(options)
    return learn(request, settings).to_json()


def _request(options: argparse.Namespace) -> "Request":
    from cp_train.request import Request

    return Request(
        lineage=options.lineage,
        concept=options.concept,
        noun=options.noun,
        images=options.images,
        base=options.base,
        config=_config(options),
        again=options.again,
        actor=check_name(options.actor, "actor") if options.actor else "",
        place=options.place,
    )


def _config(options: argparse.Namespace) -> "LearningConfig":
    """What the flags say. Warns of those that the method does not read."""
    from cp_train.denoise import LoopConfig
    from cp_train.fisher import FisherConfig
    from cp_train.methods import product_method
    from cp_train.methods.dsc import DSCConfig
    from cp_train.methods.kv import KVConfig
    from cp_train.plan import LearningConfig

    method = product_method(options.method)
    given = {setting: value for setting in _SETTINGS if (value := getattr(options, setting.name)) is not None}
    unread = {"kv": not method.protects, "dsc": not method.distils}
    ignored = [setting.flag for setting in given if unread.get(setting.part)]
    if options.weight is not None and method.default_weight is None:
        ignored.append("--weight")
    for flag in ignored:
        log.warning("%s is ignored: method %s does not read it", flag, method.name)
    parts = {"loop": LoopConfig, "fisher": FisherConfig, "kv": KVConfig, "dsc": DSCConfig}
    try:
        made = {name: kind(**_fields(given, name)) for name, kind in parts.items()}
        return LearningConfig.for_method(options.method, weight=options.weight, **made, **_fields(given, ""))
    except ValueError as error:
        raise InputError(f"{error}") from error


def _fields(given: dict[_Setting, Any], part: str) -> dict[str, Any]:
    return {setting.field: value for setting, value in given.items() if setting.part == part}


def leave(code: int, seconds: float = 60.0) -> NoReturn:
    """End the process with an exit code, whatever does not end with it.

    What runs at exit (Ray lets go of its cluster there) may wait for a thread that never answers; then a job that has
    published everything would count as running for ever, and `ray job submit` would wait with it.
    """
    end = threading.Timer(seconds, os._exit, (code,))
    end.daemon = True
    end.start()
    sys.exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stopped)
    leave(main())
