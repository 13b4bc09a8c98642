"""How well a base takes to a concept, on a tiny base and by hand."""

import json
import math
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from cp_train.benchmark import personalization
from cp_train.benchmark.personalization import PROMPTS, Trial, coloured, likeness, measure
from cp_train.denoise import LoopConfig
from cp_train.evaluation.features import open_features
from cp_train.fisher import FisherConfig
from cp_train.plan import LearningConfig
from services.base_model import load_base


def test_likeness_is_one_for_pictures_as_like_as_the_references_are():
    references = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=-1)
    between = references[0] @ references[1]
    assert likeness(references[:1], references) == pytest.approx(((1 + between) / 2 / between).item())
    assert likeness(torch.tensor([[0.0, 0.0]]), references) == 0
    assert math.isnan(likeness(references, references[:1]))


@pytest.mark.parametrize(("colour", "word"), [((30, 60, 220), "blue"), ((220, 30, 30), "red"), ((250, 250, 250), None)])
def test_the_colour_of_what_stands_on_white(colour, word):
    picture = np.full((8, 8, 3), 255, np.uint8)
    picture[2:6, 2:6] = colour
    assert coloured(picture) == word


@pytest.mark.parametrize("ground", [(60, 110, 230), (200, 60, 60)])
def test_the_ground_is_not_the_subject(ground):
    picture = np.full((8, 8, 3), ground, np.uint8)
    picture[2:6, 2:6] = (250, 150, 20)
    assert coloured(picture) == "orange"


def test_subjects_are_learned_alone_and_in_a_row(brief, subjects, tmp_path, monkeypatch):
    base = load_base(brief.base, device="cpu")
    loop = LoopConfig(steps=2, batch_size=2)
    config = LearningConfig.for_method("ewc_dc", rank=2, loop=loop, fisher=FisherConfig(batches=1))
    trial = Trial(subjects=subjects[:2], row=2, config=config)
    features = open_features(brief.features, brief.base)
    figures, sheet, left = measure(base, features, trial, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(personalization, "learn", lambda *_, **__: pytest.fail("it is kept"))
        assert measure(base, features, trial, tmp_path) == (figures, sheet, left)
        other = replace(trial, config=replace(config, weight=2 * config.weight))
        with pytest.raises(pytest.fail.Exception):
            measure(base, features, other, tmp_path)
    names = [subject.concept.name for subject in subjects[:2]]
    assert list(figures["concepts"]) == names
    assert figures["likeness"] == pytest.approx(np.mean([figures["concepts"][name]["likeness"] for name in names]))
    assert list(figures["in_a_row"]) == ["finetune", "ewc_dc"]
    for row in figures["in_a_row"].values():
        assert len(row["learned"]) == len(row["at_the_end"]) == 2
        assert row["learned"][1] == row["at_the_end"][1]
    alone = figures["concepts"][names[0]]["likeness"]
    assert figures["in_a_row"]["ewc_dc"]["learned"][0] == pytest.approx(alone)
    assert json.loads(json.dumps(figures)) == figures
    with Image.open(BytesIO(sheet)) as drawn:
        assert drawn.size == (base.image_size * (5 + 4 * len(PROMPTS)), base.image_size * 2)
    with Image.open(BytesIO(left)) as drawn:
        assert drawn.size == (base.image_size * (5 + 4 + 4), base.image_size * 2)


def test_a_shorter_row_is_another_one(brief, subjects, tmp_path):
    base, features = load_base(brief.base, device="cpu"), open_features(brief.features, brief.base)
    config = LearningConfig.for_method("kv", rank=2, loop=LoopConfig(steps=1, batch_size=2))
    for row in (2, 1):
        figures, _, _ = measure(base, features, Trial(subjects=subjects[:2], row=row, config=config), tmp_path)
        assert len(figures["in_a_row"]["kv"]["learned"]) == row


def test_a_base_without_a_judge_is_refused_by_the_command(brief, tmp_path, capsys):
    assert personalization.main(["-o", str(tmp_path), "--base", brief.base, "--concepts", "1"]) == 1
    assert "error: features: there is no judge in" in capsys.readouterr().err
