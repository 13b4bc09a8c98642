"""The recipe as a whole: every stage, once; and every long stage killed and continued."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from cp_train.pretrain import __main__ as command
from cp_train.pretrain import evaluate
from cp_train.pretrain.loop import Schedule, Trainer
from cp_train.pretrain.splits import HELD_OUT_STYLES
from cp_train.pretrain.stages import STAGES, Recipe, Run, run_stage

WEIGHTS = {
    "clip": "model.safetensors",
    "vision": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "judge": "judge.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
}


KILLED = [(stage, "judge-1" if stage == "judge" else stage) for stage in WEIGHTS] + [("vision", "reading")]
"""Stages, and whose checkpoint it is: the last network's, or the last part's, where there are several."""


class KilledError(Exception):
    """Stands for the signal that cannot be caught."""


@pytest.mark.parametrize(("stage", "part"), KILLED)
def test_a_killed_stage_continues_to_the_same_weights(stage, part, finished, tmp_path, monkeypatch):
    run = Run(tmp_path / "run", finished.recipe, finished.concepts)
    shutil.copytree(finished.out, run.out, ignore=shutil.ignore_patterns("checkpoints", "model", stage))
    steps, step = finished.recipe.unet.schedule.steps, Trainer._one

    checkpoint = run.checkpoint(part)

    def dies_before_the_last_step(trainer, loss):
        if trainer.step == steps - 1 and trainer.checkpoint == checkpoint:
            raise KilledError
        return step(trainer, loss)

    monkeypatch.setattr(Trainer, "_one", dies_before_the_last_step)
    with pytest.raises(KilledError):
        run_stage(run, stage)
    monkeypatch.undo()
    assert torch.load(checkpoint, weights_only=True)["step"] == steps // 2
    assert run_stage(run, stage)
    whole, continued = (load_file(out / stage / WEIGHTS[stage]) for out in (finished.out, run.out))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_a_finished_run_makes_nothing_again(finished):
    assert not any(run_stage(finished, stage) for stage in STAGES)


def test_what_ships_is_a_stable_diffusion_pipeline_in_half_precision(finished):
    folder = finished.out / "model"
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    first, second = (evaluate.generate(pipeline, ["a photo of a cat"], seed=seed)[0] for seed in (1, 2))
    assert first.shape == (16, 16, 3)
    assert (first != second).any()
    weights = [load_file(path) for path in folder.rglob("*.safetensors")]
    assert {tensor.dtype for tensors in weights for tensor in tensors.values()} <= {torch.float16, torch.int64}
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt"))


def test_the_card_has_figures_and_sources(finished):
    text = (finished.out / "model" / "README.md").read_text("utf-8")
    metrics = json.loads((finished.out / "model" / "metrics.json").read_text("utf-8"))
    assert {"recognised", "kid", "retrieval", "vae_db", "judge", "seconds"} <= set(metrics)
    assert f"| pictures of judged things that the judge recognises | {metrics['recognised']:.0%} |" in text
    assert "| shapes | none |" in text
    assert metrics["megabytes"].keys() == {"all", "judge"}
    assert "OFL-1.1: <https://" in text
    assert all((finished.out / "model" / f"{name}.png").exists() for name in ("judged", "composed", "personalized"))


def test_the_text_tower_of_the_pipeline_is_clips(finished):
    clip = load_file(finished.out / "model/clip/model.safetensors")
    text = load_file(finished.out / "model/pipeline/text_encoder/model.safetensors")
    shared = {name: clip[name if name in clip else f"text_model.{name}"] for name in text}
    assert all(torch.equal(shared[name], text[name]) for name in text)


def test_a_folder_gets_its_name_only_when_it_is_whole(run):
    def half(folder):
        (folder / "one").write_text("1")
        raise KilledError

    with pytest.raises(KilledError):
        run.keep("clip", half)
    assert not (run.out / "clip").exists()


def test_training_goes_on_from_a_model_that_ships(run, finished):
    still = replace(run.recipe.unet, schedule=Schedule(steps=1, lr=0.0, every=1))
    later = Run(run.out, replace(run.recipe, unet=still), run.concepts)
    later.begin_from(finished.out / "model")
    made = [stage for stage in STAGES if run_stage(later, stage)]
    assert made == ["pool", "unet", "export", "evaluate", "personalize", "card"]
    part = "pipeline/unet/diffusion_pytorch_model.safetensors"
    began, ended = (load_file(out / "model" / part) for out in (finished.out, later.out))
    assert all(torch.equal(began[name], ended[name]) for name in began)


def test_a_model_that_lacks_a_part_is_refused_whole(run, finished, tmp_path):
    shutil.copytree(finished.out / "model", tmp_path / "model", ignore=shutil.ignore_patterns("judge"))
    with pytest.raises(FileNotFoundError, match="has no judge"):
        run.begin_from(tmp_path / "model")
    assert {path.name for path in run.out.iterdir()} == {"pictures.npz", "redrawn.npz", "provenance.json"}


def test_what_is_held_out_trains_nothing_but_the_judge(finished, few):
    secret = {concept.code for concept in few if not concept.trained}
    assert not {concept.code for concept in finished.painter.concepts} & secret
    assert not set(finished.painter.styles) & set(HELD_OUT_STYLES)
    with np.load(finished.out / "pool.npz") as pool:
        assert not set(pool["styles"].tolist()) & set(HELD_OUT_STYLES)
        assert pool["rows"][:, 0].max() < len(finished.trained)
    asked = json.loads((finished.out / "judge/config.json").read_text("utf-8"))["codes"]
    assert asked == [concept.code for concept in few if concept.part != "train"]


def test_a_longer_training_changes_nothing_else():
    recipe = Recipe.tiny()
    longer = recipe.with_unet_steps(9)
    assert longer.unet.schedule.steps == 9
    assert longer.with_unet_steps(recipe.unet.schedule.steps) == recipe


def test_a_stage_says_what_it_needs_first(run):
    with pytest.raises(FileNotFoundError, match="unet needs pool and clip"):
        run_stage(run, "unet")


def test_the_command_runs_one_stage(run, finished, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(command, "Run", lambda *given: made.append(Run(*given, run.concepts)) or made[-1])
    flags = ["--out", str(run.out), "--threads", "1", "--unet-steps", "9", "--start", str(finished.out / "model")]
    assert command.main([*flags, "--stage", "pictures"]) == 0
    assert "pictures: there already" in capsys.readouterr().err
    assert made[0].recipe.unet.schedule.steps == 9
    assert made[0].start == run.out / "start"


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--threads", "1", "--stage", "unet"]) == 1
    assert "error: unet needs pool and clip" in capsys.readouterr().err


def test_the_rate_rises_stays_and_falls_to_zero():
    schedule = Schedule(steps=100, lr=1.0, warmup=10, decay=0.2)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(10) == schedule.rate(80) == 1
    assert 0 < schedule.rate(99) < schedule.rate(90) < 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"decay": 2.0}, {"every": 0}])
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="a schedule needs"):
        Schedule(**{"steps": 10, "lr": 1.0, **wrong})
