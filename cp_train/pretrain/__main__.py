"""`python -m cp_train.pretrain`: make the embedded base model from nothing, or continue making it."""

import argparse
import sys
from pathlib import Path

import torch

from cp_train.pretrain.artwork import ArtworkError
from cp_train.pretrain.stages import STAGES, Recipe, Run, run_stage


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="python -m cp_train.pretrain", description=__doc__)
    line.add_argument("--out", type=Path, default=Path("pretrain-output"), metavar="DIR", help="where all of it goes")
    line.add_argument("--stage", choices=["all", *STAGES], default="all", help="make only this stage")
    line.add_argument("--unet-steps", type=int, default=Recipe().unet.schedule.steps, help="of the longest stage")
    line.add_argument("--start", type=Path, metavar="DIR", help="a model whose U-Net is trained on")
    line.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads to use")
    return line


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for, skipping those whose result is in the folder already; 1 if one could not be made."""
    given = parser().parse_args(arguments)
    try:
        _run(given)
    except (ArtworkError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    run = Run(given.out, Recipe().with_unet_steps(given.unet_steps))
    if given.start:
        run.begin_from(given.start)
    for stage in STAGES if given.stage == "all" else (given.stage,):
        made = run_stage(run, stage)
        print(f"{stage}: {'made' if made else 'there already'}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
