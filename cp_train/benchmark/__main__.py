"""`python -m cp_train.benchmark`: compare the methods, or continue comparing them; the report is written at the end."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.arguments import Parser
from services.errors import InputError, PalimpsestError
from services.settings import get_settings
from services.telemetry import configure_logging

if TYPE_CHECKING:
    from cp_train.benchmark.settings import Settings
    from cp_train.benchmark.subjects import Subject

CHOSEN = "chosen.json"
"""What a sweep chose, in its folder; later comparisons in the same folder take it from there."""
_CORES_PER_JOB = 4


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m cp_train.benchmark", description="Compare the learning methods on concept sequences.")
    add = parser.add_argument
    add("--setup", default="six", help="six, ten, nine, fifty, two-in-one-prompt or tuning (default: %(default)s)")
    add("--methods", nargs="+", default=["all"], metavar="M", help="all, or names; ewc:weight=1 sets something")
    add("--seeds", type=int, default=1, help="seeds of every order (default: %(default)s)")
    add("--orders", type=int, help="sequences of different concepts (default: the setup's)")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="runs, results.csv and report; continued")
    add("--images", type=Path, metavar="DIR", help="your own concepts: one subfolder of pictures each")
    add("--base", default=get_settings().base, help="embedded, a directory, or a hub id (default: %(default)s)")
    add("--features", default="auto", help="auto (the base's judge), or a judge, CLIP or DINO: folder or hub id")
    add("--steps", type=int, default=150, help="training steps of a task (default: %(default)s)")
    add("--batch-size", type=int, default=8, help="images a step (default: %(default)s)")
    add("--rank", type=int, default=16, help="LoRA rank (default: %(default)s)")
    add("--fisher-batches", type=int, default=50, help="minibatches of the Fisher pass (default: %(default)s)")
    add(
        "--fisher-chunk",
        type=int,
        default=0,
        help="rows at once in it, to bound its memory; 0: all (default: %(default)s)",
    )
    add("--pictures", type=int, default=16, help="in every cell that MMD is computed from (default: %(default)s)")
    add("--drawing-steps", type=int, default=15, help="of the sampler (default: %(default)s)")
    add("--limit", type=int, help="concepts of a sequence, at most: for a short trial")
    add("--jobs", type=int, help="runs at once, as Ray tasks (default: one for every four cores)")
    add("--threads", type=int, default=0, help="CPU threads of each (default: the cores shared evenly)")
    add("--reference", default="finetune", help="what the others are compared with (default: %(default)s)")
    add("--sweep", action="store_true", help="choose each method's settings on the tuning concepts")
    add("--report", action="store_true", help="only write the report of what is there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    configure_logging()
    try:
        failed = _compare(_parser().parse_args(arguments))
    except PalimpsestError as error:
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("error: Stopped; the same command continues.", file=sys.stderr, flush=True)
        return 130
    for line in failed:
        print(f"error: {line}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _compare(options: argparse.Namespace) -> list[str]:
    from cp_train.benchmark import report, runner, sweep
    from cp_train.benchmark.contenders import parse
    from cp_train.benchmark.setups import SETUPS

    if options.setup not in SETUPS:
        raise InputError(f"setup: there is no {options.setup!r}; choose one of {', '.join(SETUPS)}.", param="setup")
    setup = SETUPS["tuning" if options.sweep else options.setup]
    contenders = parse(options.methods)
    if min(options.seeds, options.orders or 1, options.jobs or 1, options.limit or 1) < 1 or options.threads < 0:
        raise InputError("seeds, orders, jobs and limit must be at least 1, threads at least 0.")
    failed: list[str] = []
    if not options.report:
        jobs = options.jobs or max(1, (os.cpu_count() or 1) // _CORES_PER_JOB)
        settings = _settings(options, jobs)
        entrants = sweep.candidates(contenders) if options.sweep else contenders
        runs = runner.plan(
            options.output,
            setup,
            entrants,
            _subjects(options.images, setup.part),
            settings,
            orders=options.orders or setup.orders,
            seeds=options.seeds,
        )
        failed = runner.make(runs, jobs=jobs)
    if options.sweep:
        sweep.choose(options.output, options.output / CHOSEN)
    report.write(options.output, reference=options.reference)
    print(options.output / "report.md", flush=True)
    return failed


def _settings(options: argparse.Namespace, jobs: int) -> "Settings":
    from cp_train.benchmark.settings import Examination, Settings

    chosen = options.output / CHOSEN
    try:
        return Settings(
            base=options.base,
            features=options.features,
            steps=options.steps,
            batch_size=options.batch_size,
            rank=options.rank,
            fisher_batches=options.fisher_batches,
            fisher_chunk=options.fisher_chunk,
            limit=options.limit,
            chosen=json.loads(chosen.read_text("utf-8")) if chosen.exists() and not options.sweep else {},
            examination=Examination(pictures=options.pictures, steps=options.drawing_steps),
            device=get_settings().device,
            threads=options.threads or max(1, (os.cpu_count() or 1) // jobs),
        )
    except ValueError as error:
        raise InputError(f"{error}") from error


def _subjects(images: Path | None, part: str) -> "list[Subject]":
    from cp_train.benchmark.subjects import from_folders, shipped

    return from_folders(images, get_settings()) if images else shipped(part)


if __name__ == "__main__":
    sys.exit(main())
