"""Whether the gate tells honest updates from catastrophic ones: `python -m cp_train.evaluation.gate_check`.

A chain of concepts is learned with the product's own settings on the embedded base, each with another seed, and every
update is judged as a job's would be. Then updates are spoiled on top of the same chain: the learning rates times 100,
or the weights of the LoRA shuffled. Prints one line an update; ends with 1 if any verdict is wrong.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from cp_train.evaluation.draw import draw
from cp_train.evaluation.evidence import Evidence
from cp_train.evaluation.gate import Limits, judge
from cp_train.fisher import FisherConfig
from cp_train.methods import DEFAULT
from cp_train.phase import Shard
from cp_train.plan import LearningConfig, Plan
from cp_train.prompts import plain_prompt
from cp_train.task import SAMPLE_SEEDS, Task
from services.adapter import Adapter, TrainingState, new_adapter
from services.arguments import Parser
from services.base_model import BaseModel, load_base, use_threads
from services.errors import InputError, PalimpsestError
from services.lineage import Verdict
from services.manifest import Concept
from services.settings import get_settings

SPOILED = 100.0
"""What a catastrophic update's learning rates are multiplied by."""


@dataclass(frozen=True, eq=False)
class Lineage:
    """A version in memory: its weights, its Fisher information, its concepts."""

    adapter: Adapter
    fisher: TrainingState | None
    concepts: tuple[Concept, ...] = ()


def task_of(base: BaseModel, parent: Lineage, folder: Path, config: LearningConfig) -> Task:
    """The images of one folder to learn on top of a version; the folder's name is the concept's, and its noun."""
    images = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir()) if path.suffix == ".png"]
    plan = Plan(
        lineage="gate-check",
        concept=Concept(name=folder.name, noun=folder.name),
        base=base.ref.id,
        base_ref=base.ref,
        intake_id="",
        config=config,
        parent=parent.adapter,
        fisher=parent.fisher,
        earlier=parent.concepts,
        run_id="",
    )
    return Task(plan, base, images, shard=Shard(), wrap=lambda module: module)


def shuffled(adapter: Adapter, seed: int) -> Adapter:
    """The same numbers of the LoRA in other places."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (t.flatten()[torch.randperm(t.numel(), generator=generator)] for t in (adapter.down_PRD, adapter.up_KR))
    return replace(adapter, down_PRD=down.view_as(adapter.down_PRD), up_KR=up.view_as(adapter.up_KR))


def spoiled(config: LearningConfig) -> LearningConfig:
    """The same settings, but for the learning rates."""
    loop = config.loop
    return replace(config, loop=replace(loop, lr=SPOILED * loop.lr, token_lr=SPOILED * loop.token_lr))


def examine(task: Task, adapter: Adapter) -> tuple[Evidence, Verdict, float]:
    """What the gate says of an adapter that a task made, and how many seconds it took without the sample grid."""
    settings, plan = get_settings(), task.plan
    pictures = draw(task.base, adapter, [plain_prompt(concept) for concept in plan.concepts], SAMPLE_SEEDS)
    started = time.monotonic()
    evidence = task.evidence(adapter, pictures, settings.gate_features)
    seconds = time.monotonic() - started
    return evidence, judge(evidence, Limits.of(settings), plan.concept.name), seconds


def show(kind: str, task: Task, adapter: Adapter, *, honest: bool) -> bool:
    """Print one update's line; whether the verdict is right."""
    evidence, verdict, seconds = examine(task, adapter)
    figures = [min((d.similarity for d in evidence.drift.values()), default=1.0)]
    figures += [max((d.mmd for d in evidence.drift.values()), default=0.0)]
    figures += [max(evidence.dc_drop.values(), default=0.0), max(*evidence.kv.values(), evidence.base_kv, 0.0)]
    figures += [evidence.base.similarity, evidence.base.mmd, evidence.new_similarity, evidence.new_loss, seconds]
    name = f"{kind} <{task.plan.concept.name}> after {len(task.plan.earlier)}"
    word = "passed" if verdict.passed else "failed"
    print(f"{name:32}" + "".join(f"{value:9.3f}" for value in figures) + f"  {word}", flush=True)
    return verdict.passed == honest


def updates(base: BaseModel, folders: Sequence[Path], config: LearningConfig, honest: int, bad: int) -> Iterator[bool]:
    """Whether each verdict is right. Chains of all folders, in another order and with another seed each time."""
    done = spoilt = chain = 0
    while done < honest or spoilt < bad:
        order = random.Random(chain).sample(folders, len(folders))  # noqa: S311
        settings = replace(config, loop=replace(config.loop, seed=chain))
        version = Lineage(new_adapter(base.layout, rank=config.rank, seed=chain), None)
        for folder in order:
            if spoilt < bad and version.concepts and spoilt % 2 == 0:
                task = task_of(base, version, folder, spoiled(settings))
                task.train(lambda *_: None, None)
                yield show("learning rate x100", task, task.adapter(), honest=False)
                spoilt += 1
            task = task_of(base, version, folder, settings)
            task.train(lambda *_: None, None)
            if spoilt < bad and version.concepts:
                yield show("shuffled weights", task, shuffled(task.adapter(), chain), honest=False)
                spoilt += 1
            if done < honest:
                yield show("honest", task, task.adapter(), honest=True)
                done += 1
            version = Lineage(task.adapter(), task.fisher_information(), task.plan.concepts)
        chain += 1


def main() -> int:
    """Run it; 0 if every verdict is right."""
    try:
        return _check()
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _check() -> int:
    parser = Parser(prog="python -m cp_train.evaluation.gate_check", description=__doc__.splitlines()[0])
    parser.add_argument("--honest", type=int, default=20, help="honest updates")
    parser.add_argument("--catastrophic", type=int, default=10, help="spoiled updates")
    parser.add_argument("--method", default=DEFAULT, help="method of all updates")
    parser.add_argument("--images", type=Path, default=Path("infra/samples"), help="one subfolder of PNGs a concept")
    parser.add_argument("--fisher-batches", type=int, default=100, help="minibatches of each Fisher pass")
    arguments: argparse.Namespace = parser.parse_args()
    folders = sorted(path for path in arguments.images.iterdir() if path.is_dir())
    if len(folders) < 1 + (arguments.catastrophic > 0):
        raise InputError(f"{arguments.images} needs a subfolder for each of two concepts: later updates are spoiled.")
    use_threads(get_settings().threads)
    base = load_base(get_settings().base, device=get_settings().device)
    config = LearningConfig.for_method(arguments.method, fisher=FisherConfig(batches=arguments.fisher_batches))
    columns = ("similar", "mmd", "dc drop", "kv", "b.similar", "b.mmd", "n.similar", "n.loss", "seconds")
    print(f"{'update':32}" + "".join(f"{column:>9}" for column in columns))
    right = list(updates(base, folders, config, arguments.honest, arguments.catastrophic))
    print(f"{sum(right)} of {len(right)} verdicts are right")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
