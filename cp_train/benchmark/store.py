"""The folder of a comparison: every task of every run is kept, whole or not at all, and never done twice.

DIR/<setup>/order0-seed0/<contender>/run.json                what this run was told; refused if told otherwise later
                                    /task-01/record.json     figures          features.npz   image features
                                            /history.safetensors  what the next task needs
                                            /pictures.png    a row for each concept so far
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cp_train.benchmark.learner import History
from cp_train.files import write_whole
from services.adapter import Adapter, TrainingState
from services.errors import ConflictError
from services.manifest import canonical

_FISHER_DOWN, _FISHER_UP = "fisher.down", "fisher.up"


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold a comparison's folder: two that wrote the same runs would spoil each other's.

    Raises:
        ConflictError: another process holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"{root}: another comparison is at work in it; wait, or choose another -o DIR."
            ) from None
        yield


@dataclass(frozen=True, eq=False)
class Record:
    """One task as kept: its figures, and the image features of everything that was drawn or shown after it."""

    figures: dict[str, Any]
    features: dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One run: a contender on one order of a setup, with one seed."""

    root: Path
    setup: str
    order: int
    seed: int
    label: str

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.root / self.setup / f"order{self.order}-seed{self.seed}" / self.label

    @property
    def paired(self) -> tuple[int, int]:
        """What runs that are compared with each other have in common."""
        return self.order, self.seed

    def task(self, number: int) -> Path:
        """Folder of a task, counted from 1."""
        return self.folder / f"task-{number:02d}"

    def done(self, number: int) -> bool:
        """Whether that task is kept."""
        return self.task(number).is_dir()

    def claim(self, told: Mapping[str, Any]) -> None:
        """Note what this run is told, or check that what is kept of it was told the same.

        Raises:
            ConflictError: it is not.
        """
        path = self.folder / "run.json"
        if path.exists() and any(self.folder.glob("task-??")):
            before = json.loads(path.read_text("utf-8"))
            if difference := _difference(before, json.loads(canonical(told))):
                raise ConflictError(f"{path.parent}: begun with other settings ({difference}); choose another -o DIR.")
            return
        write_whole(path, json.dumps(told, indent=1) + "\n")

    def told(self) -> dict[str, Any]:
        """What it was told."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text("utf-8"))
        return facts

    def keep(self, number: int, record: Record, history: History, sheets: Mapping[str, Tensor]) -> None:
        """Keep a task: in a folder that gets its name when it is whole. Sheets are [rows, columns, H, W, 3]."""
        folder = self.task(number).with_suffix(".partial")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record.figures, indent=1) + "\n", "utf-8")
        np.savez(folder / "features.npz", **{k: v.numpy() for k, v in record.features.items()})  # type: ignore[arg-type]
        save_file(_tensors(history), folder / "history.safetensors")
        for name, pictures_RCHWC in sheets.items():
            Image.fromarray(_laid_out(pictures_RCHWC)).save(folder / f"{name}.png")
        folder.replace(self.task(number))

    def record(self, number: int) -> Record:
        """A kept task."""
        folder = self.task(number)
        with np.load(folder / "features.npz") as stored:
            features = {name: torch.from_numpy(stored[name]) for name in stored.files}
        return Record(json.loads((folder / "record.json").read_text("utf-8")), features)

    def history(self, number: int) -> History:
        """What the tasks up to that one left."""
        kept = [load_file(self.task(n) / "history.safetensors") for n in range(1, number + 1) if self.done(n)]
        adapters = {list(adapter.tokens)[-1]: adapter for adapter in map(_adapter, kept)}
        if not kept or _FISHER_DOWN not in kept[-1]:
            return History(adapters)
        return History(adapters, TrainingState(kept[-1][_FISHER_DOWN], kept[-1][_FISHER_UP]))


def cells(root: Path) -> list[Cell]:
    """Every run that was begun in a folder."""
    found = []
    for path in sorted(root.glob("*/order*-seed*/*/run.json")):
        label, run, setup = path.parent.name, path.parents[1].name, path.parents[2].name
        order, seed = run.removeprefix("order").split("-seed")
        found.append(Cell(root, setup, int(order), int(seed), label))
    return found


def _laid_out(pictures_RCHWC: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(pictures_RCHWC.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).numpy())


def _tensors(history: History) -> dict[str, Tensor]:
    """The last adapter and the Fisher information; the earlier adapters are in the folders of their tasks."""
    adapter, fisher = list(history.adapters.values())[-1], history.fisher
    kept = {"down": adapter.down_PRD, "up": adapter.up_KR, "alpha": torch.tensor(adapter.alpha)}
    # Numbered: the order in which they were learned says which concept an adapter is of.
    kept |= {f"token.{i}.{name}": rows for i, (name, rows) in enumerate(adapter.tokens.items())}
    if fisher is not None:
        kept |= {_FISHER_DOWN: fisher.down_PRD, _FISHER_UP: fisher.up_KR}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}


def _adapter(kept: Mapping[str, Tensor]) -> Adapter:
    tokens = sorted((int(k.split(".")[1]), k.split(".", 2)[2], v) for k, v in kept.items() if k.startswith("token."))
    return Adapter(kept["down"], kept["up"], float(kept["alpha"]), {name: rows for _, name, rows in tokens})


def _difference(before: Any, now: Any, path: str = "") -> str:
    """The first setting in which two runs differ, in words; empty if they do not."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = (_difference(before.get(k), now.get(k), f"{path}.{k}" if path else k) for k in {**before, **now})
        return next(filter(None, found), "")
    return "" if before == now else f"{path}: {before} then, {now} now"
