"""`python -m cp_train.pretrain`: make the embedded base model from nothing, or continue making it."""

import argparse
import sys
from pathlib import Path

import torch

from cp_train.pretrain.artwork import ArtworkError
from cp_train.pretrain.stages import STAGES, Recipe, Run, run_stage
from services.arguments import Parser
from services.errors import PalimpsestError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = Parser(prog="python -m cp_train.pretrain", description=__doc__)
    line.add_argument("--out", type=Path, default=Path("pretrain-output"), metavar="DIR", help="where all of it goes")
    line.add_argument("--stage", choices=["all", *STAGES], default="all", help="make only this stage")
    steps = f"of the longest stage (default: {Recipe().unet.schedule.steps})"
    line.add_argument("--unet-steps", type=positive, metavar="N", help=steps)
    line.add_argument("--start", type=Path, metavar="DIR", help="a model whose U-Net is trained on")
    line.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="CPU threads to use"
    )
    return line


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for, skipping those whose result is in the folder already; 1 if one could not be made."""
    try:
        _run(parser().parse_args(arguments))
    except (ArtworkError, FileNotFoundError, PalimpsestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    recipe = Recipe().with_unet_steps(given.unet_steps) if given.unet_steps else Recipe()
    run = Run(given.out, recipe)
    if given.start:
        run.begin_from(given.start)
    for stage in STAGES if given.stage == "all" else (given.stage,):
        made = run_stage(run, stage)
        print(f"{stage}: {'made' if made else 'there already'}", file=sys.stderr)
        if stage == "unet" and not made:
            _warn_of_unused(given, run)


def _warn_of_unused(given: argparse.Namespace, run: Run) -> None:
    """Say which flags did not reach the U-Net, as it was there."""
    flags = {"--unet-steps": given.unet_steps, "--start": given.start}
    unused = " and ".join(flag for flag, value in flags.items() if value)
    if unused:
        again = f"delete {run.out}/unet, {run.out}/model and {run.checkpoint('unet')}"
        print(f"warning: {unused} not used, for the U-Net is there; to train it again, {again}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
