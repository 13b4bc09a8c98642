"""`report.md`: everything that the kept runs say, with tables, plots and grids beside it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cp_train.benchmark import claims, doubts, grids, plots, results, sweep
from cp_train.benchmark.contenders import spell
from cp_train.benchmark.results import Result, Row
from cp_train.benchmark.setups import SETUPS
from cp_train.benchmark.tables import (
    COSTS,
    MAIN,
    PAIRS,
    common_runs,
    compared,
    differences,
    labels,
    markdown,
    number,
    shown,
)
from cp_train.files import write_whole

COMMANDS = "commands.txt"
"""The commands that made the runs of a folder."""
_DIGEST = 12
_HOW = """\
A run is one order of concepts with one seed; every order has its own draws. ± is half of Student's 95% interval over
the orders, the runs of one order taken together, for they share their concepts (over the seeds where there is one order
only). Methods are compared by the differences of runs with the same order and seed (paired interval). MMD is x1e3.
`unseen`: prompts that no method trains on or protects. Definitions: `cp_train/benchmark/results.py`,
`cp_train/evaluation/`. All figures: [results.csv](results.csv).
"""


def write(root: Path, *, reference: str) -> None:
    """Write `results.csv`, `report.md` and the pictures in `root` from the runs kept there."""
    found = results.load(root)
    root.mkdir(parents=True, exist_ok=True)
    rows = results.write(found, root / "results.csv")
    parts = [f"# Comparison of the methods\n\n{_HOW}", _commands(root), _told(found)]
    reported = [result for result in found if result.cell.setup != sweep.TUNING]
    kept = [row for row in rows if row["setup"] != sweep.TUNING]
    if reported:
        parts.append(f"## What was expected\n\n{claims.section(reported, kept)}")
    for setup in [name for name in SETUPS if name != sweep.TUNING]:
        mine = [result for result in found if result.cell.setup == setup]
        if mine:
            parts.append(_setup(setup, mine, [row for row in rows if row["setup"] == setup], root, reference))
    if any(row["setup"] == sweep.TUNING for row in rows):
        parts.append(_sweep(found, rows, root))
    if reported:
        parts.append(f"## Doubts\n\n{doubts.sections(reported, kept, root)}")
    write_whole(root / "report.md", "\n".join(parts))


def _commands(root: Path) -> str:
    path = root / COMMANDS
    return f"```\n{path.read_text('utf-8')}```\n" if path.exists() else ""


def _told(found: Sequence[Result]) -> str:
    """What ran on what."""
    lines = []
    for setup in dict.fromkeys(result.cell.setup for result in found):
        mine = [result for result in found if result.cell.setup == setup]
        told = mine[0].told
        lines.append(
            [
                setup,
                str(mine[0].count),
                _numbers({result.cell.order for result in mine}),
                _numbers({result.cell.seed for result in mine}),
                str(len(mine)),
                f"`{told['base']}` {told['base_revision'].removeprefix('sha256:')[:_DIGEST]}",
                str(told["learning"]["loop.steps"]),
                str(told["learning"]["rank"]),
                str(told["learning"]["loop.precision"]),
                f"{told['examination']['pictures']} of {told['examination']['steps']} steps",
                f"`{told['features']}` {told['features_digest'].removeprefix('sha256:')[:_DIGEST]}",
            ]
        )
    header = ("setup", "concepts", "orders", "seeds", "runs", "base", "steps", "rank", "precision", "pictures a cell")
    table = markdown([*header, "features"], lines)
    made = Counter(record.figures["made_with"] for result in found for record in result.records.values())
    makers = "".join(f"- {maker} ({count} tasks)\n" for maker, count in made.most_common())
    return f"Made with:\n\n{makers}\n{table}"


def _numbers(found: set[int]) -> str:
    """Numbers as a person writes them: 0-8, or 0, 2, 5."""
    low, high = min(found), max(found)
    whole = len(found) > 1 and len(found) == high - low + 1
    return f"{low}–{high}" if whole else ", ".join(map(str, sorted(found)))


def _setup(name: str, found: Sequence[Result], rows: Sequence[Row], root: Path, reference: str) -> str:
    folder = root / "plots" / name
    _plots(found, rows, folder)
    here = f"plots/{name}"
    parts = [
        f"## Setup `{name}`\n",
        compared(rows, MAIN),
        f"Paired differences from `{reference}` (bold: the 95% interval leaves out zero):\n",
        differences(rows, MAIN, reference),
        f"![drawn against forgotten]({here}/tradeoff.png)\n",
        f"KID x1000, over all runs that every method has (a dash for fewer than 100 pictures): {_kids(found, rows)}.\n",
        "### What it costs\n",
        compared(rows, COSTS),
        f"![time over tasks]({here}/seconds.png)\n",
        "### What is kept\n",
        f"![similarity over tasks]({here}/retention.png)\n![loss over tasks]({here}/loss.png)\n",
        f"![DC accuracy]({here}/accuracy.png)\n",
        f"![similarity, concept by task]({here}/similarity-matrix.png)\n",
        f"![loss, concept by task]({here}/loss-matrix.png)\n",
        "### Size of the adapter\n",
        "Where one LoRA is continued, C-LoRA's penalty also falls on what it holds of the past: a line that drops as a "
        "task begins is its degeneracy.\n",
        f"![norm of the adapter]({here}/norms.png)\n",
    ]
    if any(row.get("pair_MMD") is not None for row in rows):
        parts += ["### Two concepts in one prompt\n", compared(rows, PAIRS)]
    return "\n".join([*parts, _grids(name, found, root)])


def _kids(found: Sequence[Result], rows: Sequence[Row]) -> str:
    common = common_runs(rows, labels(rows))
    mine = [result for result in found if result.cell.paired in common]
    pooled = {label: results.pooled_kid(runs) for label, runs in plots.groups(mine).items()}
    return ", ".join(f"`{label}` {'–' if value is None else number(value)}" for label, value in pooled.items())


def _plots(found: Sequence[Result], rows: Sequence[Row], folder: Path) -> None:
    for points, name, y, title in (
        (
            plots.retained,
            "retention",
            "change of similarity to the references",
            "How a concept is drawn as others follow",
        ),
        (plots.loss_rise, "loss", "rise of the denoising loss", "How a concept is predicted as others follow"),
    ):
        series = plots.gathered(found, points)
        plots.lines(series, folder / f"{name}.png", x="tasks since it was learned", y=y, title=title)
    accuracy = plots.gathered(found, plots.accuracy)
    plots.lines(accuracy, folder / "accuracy.png", x="task", y="accuracy", title="Which concept is it? (DC accuracy)")
    seconds = plots.gathered(found, plots.seconds)
    plots.lines(seconds, folder / "seconds.png", x="task", y="CPU seconds", title="Training and consolidation")
    for kind in ("similarity", "loss"):
        plots.matrices(found, folder / f"{kind}-matrix.png", kind=kind)
    plots.norms(found, folder / "norms.png")
    plots.scatter(rows, folder / "tradeoff.png", x="F_MMD", y="A_MMD", title="Forgotten against drawn at the end")


def _grids(name: str, found: Sequence[Result], root: Path) -> str:
    """Grids of the first order and seed, uncurated."""
    first = min(result.cell.paired for result in found)
    mine = [result for result in found if result.cell.paired == first]
    grids.side_by_side(mine, root / "grids" / name / "all.png")
    links = []
    for result in mine:
        file = f"grids/{name}/{result.cell.label.replace(':', '-').replace('=', '-')}.png"
        grids.of_run(result, root / file)
        links.append(f"[`{result.cell.label}`]({file})")
    return (
        f"### Pictures\n\nEvery concept of order {first[0]}, seed {first[1]}, uncurated.\n\n"
        f"![all methods](grids/{name}/all.png)\n\nOne by one: {', '.join(links)}\n"
    )


def _sweep(found: Sequence[Result], rows: Sequence[Row], root: Path) -> str:
    known, won = sweep.scores(rows), sweep.choices(root)
    winners = {spell(method, settings): sweep.at_the_edge(method, settings) for method, settings in won.items()}
    lines = []
    for label, score in sorted(known.items()):
        bold = f"**{shown(score)}**{', at the edge' if winners[label] else ''}" if label in winners else shown(score)
        lines.append([f"`{label}`", str(score.runs), bold])
    parts = [
        "## Hyper-parameters\n",
        "On concepts that are not reported: five values of one setting for every method, after those of what it is "
        "composed of; others of `ewc_dc` are there to see, nothing is chosen by them. Score: A_MMD + F_MMD, mean of "
        "trained and unseen prompts; bold: chosen; `at the edge`: a better one may lie beyond what was tried.\n",
        markdown(["candidate", "runs", "score"], lines),
    ]
    shared = [r for r in found if r.cell.setup == sweep.TUNING and r.told["method"] in ("finetune", "clora_shared")]
    if any(result.told["method"] == "clora_shared" for result in shared):
        plots.norms(shared, root / "plots/tuning/norms.png")
        parts.append(
            "Size of the adapter where C-LoRA's penalty falls on the one LoRA that is continued, by its weight: the "
            "penalty also falls on what that holds of the past, so the greater the weight, the further it collapses as "
            "a task begins.\n\n![C-LoRA's degeneracy](plots/tuning/norms.png)\n"
        )
    return "\n".join(parts)
