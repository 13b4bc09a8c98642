"""The recipe as a whole: every stage, once; and every long stage killed and continued."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from cp_train.pretrain import __main__ as command
from cp_train.pretrain import evaluate
from cp_train.pretrain.loop import Schedule, Trainer
from cp_train.pretrain.stages import STAGES, Recipe, Run, run_stage

WEIGHTS = {
    "clip": "model.safetensors",
    "vision": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "judge": "judge.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
}


CHECKPOINTS = {"judge": "judge-0"}
"""Of stages that train more than one network: the first one's."""


class KilledError(Exception):
    """Stands for the signal that cannot be caught."""


@pytest.mark.parametrize("stage", WEIGHTS)
def test_a_killed_stage_continues_to_the_same_weights(stage, finished, tmp_path, monkeypatch):
    run = Run(tmp_path / "run", finished.recipe, finished.concepts)
    shutil.copytree(finished.out, run.out, ignore=shutil.ignore_patterns("checkpoints", "model", stage))
    steps, step = finished.recipe.unet.schedule.steps, Trainer._one

    def dies_before_the_last_step(trainer, loss):
        if trainer.step == steps - 1:
            raise KilledError
        return step(trainer, loss)

    monkeypatch.setattr(Trainer, "_one", dies_before_the_last_step)
    with pytest.raises(KilledError):
        run_stage(run, stage)
    monkeypatch.undo()
    assert torch.load(run.checkpoint(CHECKPOINTS.get(stage, stage)), weights_only=True)["step"] == steps // 2
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
    assert "| recognised |" in text
    assert "| shapes | none |" in text
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


def test_a_folder_that_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no pipeline/tokenizer"):
        run.begin_from(tmp_path)


def test_a_longer_training_changes_nothing_else():
    recipe = Recipe.tiny()
    longer = recipe.with_unet_steps(9)
    assert longer.unet.schedule.steps == 9
    assert longer.with_unet_steps(recipe.unet.schedule.steps) == recipe


def test_a_stage_says_what_it_needs_first(run):
    with pytest.raises(FileNotFoundError, match="unet needs pool and clip"):
        run_stage(run, "unet")


def test_the_command_runs_one_stage(run, monkeypatch, capsys):
    monkeypatch.setattr(command, "Run", lambda _, __: run)
    assert command.main(["--out", str(run.out), "--stage", "pictures", "--threads", "1"]) == 0
    assert "pictures: there already" in capsys.readouterr().err


def test_the_rate_rises_stays_and_falls_to_zero():
    schedule = Schedule(steps=100, lr=1.0, warmup=10, decay=0.2)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(10) == schedule.rate(80) == 1
    assert 0 < schedule.rate(99) < schedule.rate(90) < 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"decay": 2.0}, {"every": 0}])
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="a schedule needs"):
        Schedule(**{"steps": 10, "lr": 1.0, **wrong})


def test_averaged_weights_can_be_put_in_and_taken_out(tmp_path):
    model = torch.nn.Linear(2, 1)
    trainer = Trainer("line", model, Schedule(steps=3, lr=0.1, warmup=1, every=3), tmp_path / "line.pt")
    trainer.run(lambda _: (model(torch.ones(1, 2)).sum(), "note"))
    raw = model.weight.detach().clone()
    trainer.averaged()
    assert not torch.equal(model.weight, raw)
    trainer.restore()
    assert torch.equal(model.weight, raw)
