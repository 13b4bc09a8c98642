"""A comparison in seconds: a tiny base, a tiny judge, two concepts, a few steps."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from cp_train.benchmark.settings import Examination, Settings
from cp_train.benchmark.subjects import Subject, shipped
from cp_train.evaluation.judge import Judge, JudgeSize

BRIEF = Examination(pictures=4, glimpses=2, steps=2, images=1, trials=2)


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained judge; its features are random, but the same for the same picture."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("judge")
    Judge(JudgeSize(widths=(8, 16), blocks=1), ("a", "b")).save(folder)
    return folder


@pytest.fixture(scope="session")
def brief(tiny_folders: Mapping[str, Path], judge_folder: Path) -> Settings:
    return Settings(
        base=str(tiny_folders["v_prediction"]),
        features=str(judge_folder),
        steps=3,
        batch_size=2,
        rank=2,
        fisher_batches=2,
        limit=2,
        dsc_steps=2,
        examination=BRIEF,
        device="cpu",
        threads=1,
    )


@pytest.fixture(scope="session")
def subjects() -> list[Subject]:
    return shipped("reporting")
