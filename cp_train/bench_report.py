"""What `cp_train/bench.py` measured, as Markdown, against what was aimed at."""

import operator
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cp_train.benchmark.tables import markdown
from services import machine

_Aim = tuple[str, str, Callable[[float, float], bool], float]
_AIMS: Mapping[str, _Aim] = {
    "step_ratio_ewc_dc": ("a step of `ewc_dc`, in plain ones", "at most", operator.le, 1.1),
    "step_ratio_dsc": ("a step of DSC, in plain ones", "at most", operator.le, 3.5),
    "step_ratio_kv": ("a step of `kv`, in plain ones", "at most", operator.le, 1.15),
    "job_speedup_vs_diffusers_loop": ("a job, times as fast as diffusers' loop", "at least", operator.ge, 2.0),
}
_WHAT = """\
A step is of {batch_size} pictures with {earlier_concepts} earlier concepts; steps take turns, and a ratio is the
median over the turns (the middle 80% in brackets). The job is the caches and {steps} steps of `{default_method}`; the
loop that it is compared with encodes pictures and prompts in every step, in the manner of diffusers' training examples,
in float32. The job's Fisher pass has no counterpart there: with it the job is {with_fisher:.2f} times as fast. Ours
multiplies in {precision}; a plain step in {other} takes {other_share:.2f} of the time."""


def report(results: Mapping[str, Any], command: Sequence[str]) -> str:
    """The section: how it was measured, the ratios and what they are held against, then the seconds."""
    told = results["environment"]
    other = "float32" if told["precision"] == "bfloat16" else "bfloat16"
    steps = results["step_seconds"]
    what = _WHAT.format(
        **told,
        with_fisher=results["job_speedup_with_fisher"],
        other=other,
        other_share=steps[other]["median"] / steps["plain"]["median"],
    )
    judged = [_judged(name, aim, results) for name, aim in _AIMS.items()]
    seconds = [[f"a step, {name}", f"{found['median']:.3f}"] for name, found in steps.items()]
    seconds += [[f"the job: {name}", f"{value:.1f}"] for name, value in results["job_seconds"].items()]
    load = (told[f"load_average_{when}"][0] for when in ("before", "after"))
    parts = ["# Training", f"`{shlex.join(command)}`. {machine.sentence(told, *load)}.", what]
    parts += [markdown(["figure", "measured", "aim", ""], judged), markdown(["", "seconds"], seconds)]
    return "\n\n".join(parts)


def _judged(name: str, aim: _Aim, results: Mapping[str, Any]) -> list[str]:
    title, word, holds, limit = aim
    value, spread = results[name], results.get(f"{name}_spread")
    around = f" ({spread['p10']:.2f}–{spread['p90']:.2f})" if spread else ""
    return [title, f"{value:.2f}{around}", f"{word} {limit}", "met" if holds(value, limit) else "**not met**"]
