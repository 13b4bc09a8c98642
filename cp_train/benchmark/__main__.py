"""`python -m cp_train.benchmark`: compare the methods, or continue comparing them; the report is written at the end."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from services.arguments import Parser
from services.documents import check_publishable, publish_part
from services.errors import InputError, PalimpsestError
from services.settings import get_settings
from services.telemetry import configure_logging

if TYPE_CHECKING:
    from cp_train.benchmark.agenda import Item
    from cp_train.benchmark.contenders import Contender
    from cp_train.benchmark.runner import Run
    from cp_train.benchmark.settings import Settings
    from cp_train.benchmark.subjects import Subject

_CORES_PER_JOB = {"embedded": 1}
_CORES_PER_BIG_JOB = 4
"""The embedded base is so small that threads wait for each other longer than they work."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m cp_train.benchmark", description="Compare the learning methods on concept sequences.")
    add = parser.add_argument
    setups = "six, ten, nine, fifty, two-in-one-prompt or tuning"
    add("--setup", default="six", help=f"{setups}; everything: all that docs/method.md lists (default: %(default)s)")
    add("--methods", nargs="+", metavar="M", help="names; ewc:weight=1 sets something (default: all)")
    add("--seeds", type=int, help="seeds of every order (default: 1)")
    add("--orders", type=int, help="sequences of different concepts (default: the setup's)")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="runs, results.csv and report; continued")
    add("--images", type=Path, metavar="DIR", help="your own concepts: one subfolder of pictures each")
    add("--base", default=get_settings().base, help="embedded, a directory, or a hub id (default: %(default)s)")
    add("--features", default="auto", help="auto (the base's judge), or a judge, CLIP or DINO: folder or hub id")
    add("--budget", default="full", help="full or brief: what the next six are by default (default: %(default)s)")
    add("--steps", type=int, help="training steps of a task")
    add("--dsc-steps", type=int, help="steps of DSC's second phase")
    add("--fisher-batches", type=int, help="samples of the Fisher pass")
    add("--pictures", type=int, help="in every cell that MMD is computed from")
    add("--drawing-steps", type=int, help="of the sampler")
    add("--precision", help="of training and drawing: float32, or bfloat16, which few CPUs have")
    add("--batch-size", type=int, default=8, help="images a step (default: %(default)s)")
    add("--rank", type=int, default=16, help="LoRA rank (default: %(default)s)")
    add(
        "--fisher-chunk",
        type=int,
        default=0,
        help="rows at once in it, to bound its memory; 0: all (default: %(default)s)",
    )
    add("--limit", type=int, help="concepts of a sequence, at most: for a short trial")
    add("--jobs", type=int, help="runs at once, as Ray tasks (default: one a core on embedded, else one for four)")
    add("--threads", type=int, default=0, help="CPU threads of each (default: the cores shared evenly)")
    add("--reference", default="finetune", help="what the others are compared with (default: %(default)s)")
    add("--sweep", action="store_true", help="choose each method's setting on the tuning concepts; later runs have it")
    add("--report", action="store_true", help="only write the report of what is there")
    add(
        "--publish",
        type=Path,
        metavar="FILE",
        help="also put the report into this document",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    configure_logging()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        failed = _compare(_parser().parse_args(words), words)
    except PalimpsestError as error:
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("error: Stopped; the same command continues.", file=sys.stderr, flush=True)
        return 130
    for line in failed:
        print(f"error: {line}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _compare(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    from cp_train.benchmark import report
    from cp_train.benchmark.store import alone

    items = _items(options)
    numbers = (options.seeds, options.orders, options.jobs, options.limit)
    if any(number is not None and number < 1 for number in numbers) or options.threads < 0:
        raise InputError("seeds, orders, jobs and limit must be at least 1, threads at least 0.")
    if options.publish:
        check_publishable(options.publish)
    failed: list[str] = []
    if not options.report:
        with alone(options.output):
            _note(options.output, words)
            for item in items:
                failed += _swept(item, options) if item.sweep else []
            failed += _made([run for item in items if not item.sweep for run in _runs(item, options)], options)
    report.write(options.output, reference=options.reference)
    print(options.output / "report.md", flush=True)
    if options.publish:
        publish_part(options.output / "report.md", options.publish, "learning")
        print(options.publish, flush=True)
    return failed


def _items(options: argparse.Namespace) -> "Sequence[Item]":
    """What is to be done: what the flags say, or the whole agenda of the budget."""
    from cp_train.benchmark.agenda import AGENDAS, EVERYTHING, Item
    from cp_train.benchmark.settings import BUDGETS
    from cp_train.benchmark.setups import SETUPS

    if options.budget not in BUDGETS:
        raise InputError(f"budget: there is no {options.budget!r}; choose {' or '.join(BUDGETS)}.", param="budget")
    if options.setup == EVERYTHING:
        if options.methods or options.orders or options.seeds or options.sweep or options.images:
            raise InputError(
                f"setup: {EVERYTHING} has its own methods, orders, seeds, sweep and images.", param="setup"
            )
        return AGENDAS[options.budget]
    if options.sweep and options.images:
        raise InputError(
            "images: settings chosen on them could not be reported on them; sweep without --images, then compare with "
            "--images into the same -o.",
            param="images",
        )
    if options.setup not in SETUPS:
        known = ", ".join((*SETUPS, EVERYTHING))
        raise InputError(f"setup: there is no {options.setup!r}; choose one of {known}.", param="setup")
    seeds = 1 if options.seeds is None else options.seeds
    setup = "tuning" if options.sweep else options.setup
    methods = tuple(options.methods or ["all"])
    return [Item(setup=setup, methods=methods, orders=options.orders, seeds=seeds, sweep=options.sweep)]


def _swept(item: "Item", options: argparse.Namespace) -> list[str]:
    """Make the candidates of an item, round by round, and choose; returns a line for each that failed."""
    from cp_train.benchmark import sweep
    from cp_train.benchmark.contenders import parse

    failed = []
    for candidates in sweep.rounds(parse(item.methods)):
        failed += _made(_runs(item, options, candidates), options)
        sweep.choose(options.output, list(dict.fromkeys(candidate.method for candidate in candidates)))
    return failed


def _runs(item: "Item", options: argparse.Namespace, contenders: "Sequence[Contender] | None" = None) -> "list[Run]":
    """All runs of an item, or of these in place of its methods, with the settings that were chosen so far."""
    from cp_train.benchmark import runner
    from cp_train.benchmark.contenders import parse
    from cp_train.benchmark.setups import SETUPS

    setup = SETUPS[item.setup]
    return runner.plan(
        options.output,
        setup,
        contenders or parse(item.methods),
        _subjects(options.images, setup.part),
        _settings(options),
        orders=item.orders or setup.orders,
        seeds=item.seeds,
    )


def _made(runs: "Sequence[Run]", options: argparse.Namespace) -> list[str]:
    from cp_train.benchmark import runner

    return runner.make(runs, jobs=_jobs(options)) if runs else []


def _jobs(options: argparse.Namespace) -> int:
    return options.jobs or max(1, (os.cpu_count() or 1) // _CORES_PER_JOB.get(options.base, _CORES_PER_BIG_JOB))


def _note(output: Path, words: Sequence[str]) -> None:
    """Remember the command."""
    from cp_train.benchmark.report import COMMANDS

    path, line = output / COMMANDS, shlex.join(["python", "-m", "cp_train.benchmark", *words])
    known = path.read_text("utf-8").splitlines() if path.exists() else []
    if line not in known:
        path.write_text("\n".join([*known, line]) + "\n", "utf-8")


def _settings(options: argparse.Namespace) -> "Settings":
    from cp_train.benchmark.settings import BUDGETS, Examination, Settings
    from cp_train.benchmark.sweep import choices

    budget = asdict(BUDGETS[options.budget])
    length = {name: value if (given := getattr(options, name)) is None else given for name, value in budget.items()}
    pictures, drawing = length.pop("pictures"), length.pop("drawing_steps")
    glimpses = min(Examination.glimpses, pictures // 2)
    try:
        return Settings(
            base=options.base,
            features=options.features,
            batch_size=options.batch_size,
            rank=options.rank,
            fisher_chunk=options.fisher_chunk,
            limit=options.limit,
            chosen=choices(options.output),
            examination=Examination(pictures=pictures, glimpses=glimpses, steps=drawing, precision=length["precision"]),
            device=get_settings().device,
            threads=options.threads or max(1, (os.cpu_count() or 1) // _jobs(options)),
            **length,
        )
    except ValueError as error:
        raise InputError(f"{error}") from error


def _subjects(images: Path | None, part: str) -> "list[Subject]":
    from cp_train.benchmark.subjects import from_folders, shipped

    return from_folders(images, get_settings()) if images else shipped(part)


if __name__ == "__main__":
    sys.exit(main())
