"""Whether the gate tells honest updates from catastrophic ones: `python -m cp_train.evaluation.gate_check -o DIR`.

Chains of held-out concepts are learned with the product's own settings, each chain with concepts and a seed of its own,
and every update is judged as a job's would be. Beside the chains updates are spoiled: fine-tuning at learning rates
times 100, or the numbers of the LoRA shuffled. Even chains are of the `tuning` artwork and may set limits, odd ones of
the `reporting` artwork and tell how well such limits do.

`updates.csv` has a line for every update, `asked.json` what made them, `gate.md` what follows (`gate_report.py`). A
chain that is written is not learned again: a run that was interrupted goes on, and one with other limits only reports
anew. Ends with 1 if any verdict is wrong.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cp_train.benchmark.subjects import Subject, from_folders, shipped
from cp_train.evaluation.gate_report import HONEST, KINDS, Table, Update, limits_of, write_report
from cp_train.fisher import FisherConfig
from cp_train.methods import DEFAULT
from cp_train.methods.finetune import Finetune
from cp_train.phase import Shard
from cp_train.plan import LearningConfig, Plan
from cp_train.task import Learned, Task
from services.adapter import Adapter, TrainingState, new_adapter
from services.arguments import Parser
from services.base_model import BaseModel, load_base, use_threads
from services.errors import ConflictError, InputError, PalimpsestError
from services.manifest import Concept
from services.settings import Settings, get_settings

SPOILED = 100.0
"""What a catastrophic update's learning rates are multiplied by."""
_PARTS = ("tuning", "reporting")


@dataclass(frozen=True, eq=False)
class Lineage:
    """A version in memory: its weights, its Fisher information, its concepts."""

    adapter: Adapter
    fisher: TrainingState | None
    concepts: tuple[Concept, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """What is to be tried.

    Attributes:
        honest: updates.
        spoiled: updates, spread over the chains.
        length: concepts of one chain.
        folders: subfolders of anybody's own pictures, in place of the artwork.
    """

    base: BaseModel
    settings: Settings
    config: LearningConfig
    honest: int
    spoiled: int
    length: int
    folders: Path | None = None

    @property
    def chains(self) -> int:
        """How many there are."""
        return -(-self.honest // self.length)

    def subjects(self, chain: int) -> list[Subject]:
        """The concepts of one chain, in order: disjoint ones while there are enough.

        Raises:
            InputError: there are too few.
        """
        known = from_folders(self.folders, self.settings) if self.folders else shipped(_PARTS[chain % 2])
        count = min(self.length, self.honest - chain * self.length)
        if len(known) < count:
            raise InputError(f"A chain takes {count} concepts and there are {len(known)}: lower --length.")
        place = chain if self.folders else chain // len(_PARTS)
        shuffle, part = divmod(place, len(known) // count)
        return random.Random(f"{shuffle}").sample(known, len(known))[part * count :][:count]  # noqa: S311

    def kinds(self, chain: int) -> list[list[str]]:
        """How each concept of a chain is spoiled beside being learned: no, one or several ways.

        The first one is, then the last, then those before it; both halves of the chains have both ways of each.
        """
        count = self.spoiled // self.chains + (chain < self.spoiled % self.chains)
        length = len(self.subjects(chain))
        ways: list[list[str]] = [[] for _ in range(length)]
        for number in range(count):
            turn, place = divmod(number, length)
            ways[-place].append(KINDS[(turn + place + chain // len(_PARTS)) % len(KINDS)])
        return ways

    def asked(self) -> dict[str, object]:
        """What decides the figures."""
        told = {"base": self.base.ref.revision, "features": self.settings.gate_features, **self.config.flat()}
        counts = {"honest": self.honest, "spoiled": self.spoiled, "length": self.length}
        return told | counts | {"images": str(self.folders.absolute()) if self.folders else "artwork"}

    def run(self, chain: int) -> Iterator[Update]:
        """Learn one chain and judge all of its updates."""
        config = replace(self.config, loop=replace(self.config.loop, seed=chain))
        version = Lineage(new_adapter(self.base.layout, rank=config.rank, seed=chain), None)
        for subject, ways in zip(self.subjects(chain), self.kinds(chain), strict=True):
            task = self._trained(version, subject, config)
            adapter, fisher = task.adapter(), task.fisher_information()
            yield self._judged(chain, HONEST, task, adapter, fisher)
            for kind in ways:
                if kind == KINDS[0]:
                    worse = self._trained(version, subject, spoiled(config))
                    yield self._judged(chain, kind, worse, worse.adapter(), fisher)
                else:
                    yield self._judged(chain, kind, task, shuffled(adapter, chain), fisher)
            version = Lineage(adapter, fisher, task.plan.concepts)

    def _trained(self, version: Lineage, subject: Subject, config: LearningConfig) -> Task:
        plan = Plan(
            lineage="gate-check",
            concept=subject.concept,
            base=self.base.ref.id,
            base_ref=self.base.ref,
            intake_id="",
            config=config,
            parent=version.adapter,
            fisher=version.fisher,
            earlier=version.concepts,
            run_id="",
        )
        task = Task(plan, self.base, list(subject.images), shard=Shard(), wrap=lambda module: module)
        task.train(lambda *_: None, None)
        return task

    def _judged(self, chain: int, kind: str, task: Task, adapter: Adapter, fisher: TrainingState) -> Update:
        started = time.monotonic()
        learned: Learned = task.judged(adapter, fisher, self.settings)
        return Update.of(
            chain=chain,
            kind=kind,
            concept=task.plan.concept.name,
            earlier=len(task.plan.earlier),
            verdict=learned.verdict,
            metrics=learned.metrics,
            seconds=time.monotonic() - started,
        )


def shuffled(adapter: Adapter, seed: int) -> Adapter:
    """The same numbers of the LoRA in other places."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (t.flatten()[torch.randperm(t.numel(), generator=generator)] for t in (adapter.down_PRD, adapter.up_KR))
    return replace(adapter, down_PRD=down.view_as(adapter.down_PRD), up_KR=up.view_as(adapter.up_KR))


def spoiled(config: LearningConfig) -> LearningConfig:
    """The same settings, but for the learning rates, and with nothing that preserves: `kv` survives such rates."""
    loop = config.loop
    worse = replace(loop, lr=SPOILED * loop.lr, token_lr=SPOILED * loop.token_lr)
    return replace(config, method=Finetune.name, weight=0.0, loop=worse)


def check(wanted: Check, output: Path) -> bool:
    """Try everything that is not written yet; whether every verdict is right.

    Raises:
        ConflictError: the folder has updates that other settings made.
    """
    output.mkdir(parents=True, exist_ok=True)
    _claim(output / "asked.json", json.dumps(wanted.asked(), indent=1))
    table = Table(output / "updates.csv")
    done = {update.chain for update in table.read()}
    for chain in range(wanted.chains):
        if chain in done:
            continue
        made = []
        for update in wanted.run(chain):
            made.append(update)
            print(update.line(), flush=True)
        table.append(made)
    updates = table.read()
    limits = limits_of(wanted.settings)
    (output / "gate.md").write_text(write_report(updates, limits))
    right = sum(update.right(limits) for update in updates)
    print(f"{right} of {len(updates)} verdicts are right; see {output / 'gate.md'}")
    return right == len(updates)


def _claim(path: Path, asked: str) -> None:
    """Make a folder that of one set of settings: updates that others made must not go on in it."""
    if not path.exists():
        path.write_text(asked)
    elif path.read_text() != asked:
        raise ConflictError(f"{path.parent} has updates of other settings ({path.name}): give another folder.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if every verdict is right."""
    try:
        return 0 if _check(arguments) else 1
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


def _check(arguments: Sequence[str] | None) -> bool:
    parser = Parser(prog="python -m cp_train.evaluation.gate_check", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the table and the report")
    parser.add_argument("--honest", type=int, default=20, help="honest updates (default: %(default)s)")
    parser.add_argument("--catastrophic", type=int, default=12, help="spoiled updates (default: %(default)s)")
    parser.add_argument("--length", type=int, default=5, help="concepts of a chain (default: %(default)s)")
    parser.add_argument("--method", default=DEFAULT, help="method of all updates (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="one subfolder a concept, in place of the held-out artwork")
    parser.add_argument("--base", default=get_settings().base, help="base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps (default: the job's)")
    parser.add_argument("--fisher-batches", type=int, help="minibatches of a Fisher pass (default: the job's)")
    options: argparse.Namespace = parser.parse_args(arguments)
    if min(options.honest, options.length) < 1 or options.catastrophic < 0:
        raise InputError("Give at least one honest update, and chains of at least one concept.")
    settings = get_settings()
    use_threads(settings.threads)
    wanted = Check(
        base=load_base(options.base, device=settings.device),
        settings=settings,
        config=_config(options),
        honest=options.honest,
        spoiled=options.catastrophic,
        length=options.length,
        folders=options.images,
    )
    return check(wanted, options.output)


def _config(options: argparse.Namespace) -> LearningConfig:
    """The product's own settings, but for what was asked to be shorter."""
    fisher = FisherConfig() if options.fisher_batches is None else FisherConfig(batches=options.fisher_batches)
    config = LearningConfig.for_method(options.method, fisher=fisher)
    return config if options.steps is None else replace(config, loop=replace(config.loop, steps=options.steps))


if __name__ == "__main__":
    sys.exit(main())
