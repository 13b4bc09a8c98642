"""Training speed, in one run: `python -m cp_train.bench -o DIR` writes `DIR/results.json` and `DIR/report.md`.

What is compared takes turns, step by step, so that a busy moment of the machine falls on all alike; a ratio is the
median over the turns, and its spread is told. A method's own work of once per task (teachers' answers of DSC, protected
prompts of kv) is spread over the steps that it serves. A job is the caches and the training steps of the default
method; the loop that it is compared with makes as many steps of as many pictures. That loop has no Fisher pass, which
is timed beside and counted in a figure of its own. Pictures are random: speed does not depend on what they show.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cp_train.bench_report import report
from cp_train.data import to_pixels
from cp_train.denoise import LoopConfig
from cp_train.diffusers_loop import DiffusersLoop
from cp_train.files import write_whole
from cp_train.methods import DEFAULT, find_method
from cp_train.phase import Shard
from cp_train.plan import LearningConfig, Plan
from cp_train.task import Task
from services import machine
from services.adapter import Adapter, TrainingState, new_adapter
from services.arguments import Parser
from services.base_model import BaseModel, load_base, use_threads
from services.documents import check_publishable, publish_part
from services.errors import InputError, PalimpsestError
from services.manifest import Concept

EARLIER, PICTURES, RANK, WARM_UP = 5, 6, 16, 2
"""Of the task that is timed: concepts learned before (as many as the scores take), its pictures, its LoRA."""
_SIMPLE = {"plain": "finetune", "ewc_dc": "ewc_dc"}
Stepper = Callable[[], object]


def pictures(base: BaseModel, count: int = PICTURES) -> list[Image.Image]:
    """Random pictures of the base's size."""
    noise = torch.randint(256, (count, base.image_size, base.image_size, 3), generator=torch.Generator().manual_seed(0))
    return [Image.fromarray(picture.to(torch.uint8).numpy()) for picture in noise]


def plan_of(base: BaseModel, method: str, loop: LoopConfig) -> Plan:
    """One more concept, on top of as many as the scores look at."""
    earlier = tuple(Concept(name=f"c{index}", noun="toy") for index in range(EARLIER))
    fresh = new_adapter(base.layout, rank=RANK)
    tokens = {c.name: 0.01 * torch.randn(1, base.layout.text_width, device=base.device) for c in earlier}
    parent = Adapter(fresh.down_PRD, 0.01 * torch.randn_like(fresh.up_KR), fresh.alpha, tokens)
    return Plan(
        lineage="bench",
        concept=Concept(name="bench", noun="toy"),
        base=base.ref.id,
        base_ref=base.ref,
        intake_id="",
        config=LearningConfig.for_method(method, rank=RANK, loop=loop),
        parent=parent,
        fisher=TrainingState(torch.ones_like(parent.down_PRD), torch.ones_like(parent.up_KR)),
        earlier=earlier,
        run_id="",
        teachers=tuple(replace(parent, tokens={c.name: tokens[c.name]}) for c in earlier),
    )


def task_of(base: BaseModel, method: str, loop: LoopConfig) -> Task:
    """That plan at work."""
    return Task(plan_of(base, method, loop), base, pictures(base), shard=Shard(), wrap=lambda module: module)


def seconds(work: Stepper) -> float:
    """How long some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def stepper(task: Task, *, first: int = 0) -> tuple[Stepper, float]:
    """Repeats the second step of a phase that begins at step `first`; and what the first one took."""
    task.loop.step = first
    begun = seconds(task.loop.advance)

    def step() -> None:
        task.loop.step = first + 1
        task.loop.advance()

    return step, begun


def take_turns(steppers: dict[str, Stepper], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step of each, turn by turn, after a warm-up."""
    for _ in range(WARM_UP):
        for step in steppers.values():
            step()
    found: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(rounds):
        order = list(steppers.items())
        for name, step in order if turn % 2 else reversed(order):
            found[name].append(seconds(step))
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and the middle 80%."""
    tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1], "n": len(values)}


def compare_steps(base: BaseModel, loop: LoopConfig, rounds: int) -> dict[str, Any]:
    """Steps of the methods against a plain one."""
    other = replace(loop, precision="float32" if loop.precision == "bfloat16" else "bfloat16")
    kv, dsc = task_of(base, "kv", loop), task_of(base, "dsc", loop)
    distil, begun = stepper(dsc, first=loop.steps)
    steppers = {name: stepper(task_of(base, method, loop))[0] for name, method in _SIMPLE.items()}
    steppers |= {"kv": stepper(kv)[0], "dsc": distil, other.precision: stepper(task_of(base, "finetune", other))[0]}
    times = take_turns(steppers, rounds)
    step = {name: statistics.median(values) for name, values in times.items()}
    once = {
        "ewc_dc": 0.0,
        "kv": seconds(kv.protect) / loop.steps,
        "dsc": (begun - step["dsc"]) / dsc.plan.config.dsc.steps,
    }
    found: dict[str, Any] = {"step_seconds": {name: spread(values) for name, values in times.items()}}
    found["spread_over_steps_seconds"] = once
    for name, extra in once.items():
        ratios = [(value + extra) / base_ for value, base_ in zip(times[name], times["plain"], strict=True)]
        found[f"step_ratio_{name}"] = statistics.median(ratios)
        found[f"step_ratio_{name}_spread"] = spread(ratios)
    return found


def compare_jobs(reference: str, base: BaseModel, loop: LoopConfig) -> dict[str, Any]:
    """The default method's whole job against diffusers' loop, step by step in turns."""
    prepared: list[Task] = []
    cache = seconds(lambda: prepared.append(task_of(base, DEFAULT, loop)))
    task = prepared[0]
    theirs = DiffusersLoop(reference, to_pixels(pictures(base), base.image_size), loop, rank=RANK, device=base.device)
    for _ in range(WARM_UP):
        theirs.advance()
    # Both make all steps; ours begins at its first one, so its warm-up counts against it.
    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    while task.loop.step < task.steps:
        times["ours"].append(seconds(task.loop.advance))
        times["diffusers"].append(seconds(theirs.advance))
    fisher = seconds(task.fisher_information)
    training = sum(times["ours"])
    return {
        "job_speedup_vs_diffusers_loop": sum(times["diffusers"]) / (cache + training),
        "job_speedup_with_fisher": sum(times["diffusers"]) / (cache + training + fisher),
        "job_seconds": {"caches": cache, "training": training, "fisher": fisher, "diffusers": sum(times["diffusers"])},
        "job_step_seconds": {name: spread(values) for name, values in times.items()},
    }


def environment(loop: LoopConfig, before: tuple[float, ...]) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        **machine.describe(),
        "load_average_before": before,
        "load_average_after": os.getloadavg(),
        "default_method": find_method(DEFAULT).name,
        "batch_size": loop.batch_size,
        "steps": loop.steps,
        "precision": loop.precision,
        "earlier_concepts": EARLIER,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = Parser("python -m cp_train.bench", description="Measure training speed.")
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="folder for results.json and report.md")
    add("--base", default="embedded", help="embedded, a directory, or a hub id (default: %(default)s)")
    add("--rounds", type=int, default=30, help="turns of the comparison of steps (default: %(default)s)")
    add("--steps", type=int, default=LoopConfig.steps, help="steps of the compared jobs (default: %(default)s)")
    add("--precision", default=LoopConfig.precision, help="of our training (default: %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads; 0: all cores (default: %(default)s)")
    add("--publish", type=Path, metavar="FILE", help="also put the report into this document")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = parser.parse_args(words)
        if options.publish:
            check_publishable(options.publish)
        results = _measure(options)
        told = report(results, ["python", "-m", "cp_train.bench", *words])
        write_whole(options.output / "report.md", told)
        if options.publish:
            publish_part(options.output / "report.md", options.publish, "training")
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(json.dumps({name: value for name, value in results.items() if isinstance(value, float)}, indent=2))
    return 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    try:
        loop = LoopConfig(steps=options.steps, precision=options.precision)
    except ValueError as error:
        raise InputError(f"{error}") from error
    if options.rounds < 1 or options.steps < WARM_UP:
        raise InputError(f"rounds must be at least 1, steps at least {WARM_UP}.", param="rounds")
    use_threads(options.threads)
    before = os.getloadavg()
    torch.manual_seed(0)
    base = load_base(options.base)
    results = compare_steps(base, loop, options.rounds) | compare_jobs(options.base, base, loop)
    results["environment"] = environment(loop, before)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    sys.exit(main())
