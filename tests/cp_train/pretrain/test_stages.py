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
from cp_train.pretrain import evaluate, tokens
from cp_train.pretrain.card import card
from cp_train.pretrain.loop import Schedule, Trainer
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.splits import HELD_OUT_STYLES
from cp_train.pretrain.stages import STAGES, Recipe, Run, card_of, run_stage
from services.base_model import EMBEDDED
from services.errors import RefusedError

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
    assert same_weights(finished.out / stage, run.out / stage, WEIGHTS[stage])


def without_its_unet(finished, folder):
    """The same run before its `unet` stage, but with that stage's last checkpoint."""
    shutil.copytree(finished.out, folder, ignore=shutil.ignore_patterns("model", "unet"))
    return Run(folder, finished.recipe, finished.concepts)


def test_a_checkpoint_of_a_finished_stage_is_its_result(finished, tmp_path):
    run = without_its_unet(finished, tmp_path / "run")
    assert run_stage(run, "unet")
    assert same_weights(finished.out / "unet", run.out / "unet", WEIGHTS["unet"])


def test_a_checkpoint_of_other_settings_is_refused(finished, tmp_path):
    run = without_its_unet(finished, tmp_path / "run")
    longer = replace(run, recipe=run.recipe.with_unet_steps(9))
    with pytest.raises(RefusedError, match=r"unet\.pt was made with other settings \(schedule\.steps was 4, is 9\)"):
        run_stage(longer, "unet")
    wider = replace(run, recipe=replace(run.recipe, unet=replace(run.recipe.unet, focus=9.0)))
    with pytest.raises(RefusedError, match=r"\(focus was 2\.5, is 9\.0\): give the same, or delete it"):
        run_stage(wider, "unet")
    assert not (run.out / "unet").exists()
    run.checkpoint("unet").unlink()
    assert run_stage(longer, "unet")


def test_a_checkpoint_of_another_start_is_refused(finished, tmp_path):
    run = without_its_unet(finished, tmp_path / "run")
    shutil.copytree(finished.out / "unet", run.out / "start")
    with pytest.raises(RefusedError, match=r"\(start was None, is [0-9a-f]{64}\)"):
        run_stage(run, "unet")


def test_a_checkpoint_that_does_not_say_its_settings_is_refused(finished, tmp_path):
    run = without_its_unet(finished, tmp_path / "run")
    state = torch.load(run.checkpoint("unet"), weights_only=True)
    del state["settings"]
    torch.save(state, run.checkpoint("unet"))
    with pytest.raises(RefusedError, match="batch was not noted, is 4"):
        run_stage(run, "unet")


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


def test_no_path_of_the_maker_ships(finished):
    for path in (finished.out / "model").rglob("*.json"):
        text = path.read_text("utf-8")
        assert "_name_or_path" not in text, path
        assert str(finished.out) not in text, path


def test_the_card_has_figures_and_sources(finished):
    text = (finished.out / "model" / "README.md").read_text("utf-8")
    metrics = json.loads((finished.out / "model" / "metrics.json").read_text("utf-8"))
    assert {"recognised", "kid", "retrieval", "vae_db", "judge", "seconds"} <= set(metrics)
    assert f"| pictures of judged things that the judge recognises | {metrics['recognised']:.0%} |" in text
    assert "| shapes | none |" in text
    assert metrics["megabytes"].keys() == {"all", "judge"}
    assert "OFL-1.1: <https://" in text
    assert metrics["settings"]["threads"] == 1
    for name in ("judged", "composed", "personalized", "in_a_row"):
        assert (finished.out / "model" / f"{name}.png").exists()
        assert f"]({name}.png)" in text


def test_the_card_says_what_is_left_of_those_learned_in_a_row(finished):
    folder = finished.out / "model"
    metrics, learned = (
        json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("metrics", "personalization")
    )
    only = next(iter(learned["concepts"].values()))
    learned["concepts"] = {"owl": only, "fox": only, "never in a row": only}
    learned["in_a_row"] = {
        "finetune": {"learned": [1.0, 0.9], "at_the_end": [0.3, 0.8]},
        "ours": {"learned": [0.7, 0.6], "at_the_end": [0.5, 0.4]},
    }
    text = card(metrics, learned, [])
    head = text.index("| method | owl | fox |\n|---|---|---|\n")
    assert text[head:].splitlines()[2:4] == [
        "| `finetune` | 1.00 -> 0.30 | 0.90 -> 0.80 |",
        "| `ours` | 0.70 -> 0.50 | 0.60 -> 0.40 |",
    ]
    assert "likeness when it was learned -> after the last one" in text


def test_what_ships_is_as_small_as_it_says_and_its_card_says_its_figures():
    model = EMBEDDED.parent
    megabytes = evaluate.megabytes(model)
    assert megabytes["all"] <= 60
    assert megabytes["judge"] <= 8
    assert json.loads((model / "metrics.json").read_text("utf-8"))["megabytes"] == megabytes
    assert (model / "README.md").read_text("utf-8") == card_of(model)


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


def test_a_start_that_was_interrupted_goes_on_with_that_model_alone(run, finished, tmp_path, monkeypatch):
    keep, model = Run.keep, finished.out / "model"

    def dies_at_the_vae(run, name, write):
        if name == "vae":
            raise KilledError
        keep(run, name, write)

    monkeypatch.setattr(Run, "keep", dies_at_the_vae)
    with pytest.raises(KilledError):
        run.begin_from(model)
    monkeypatch.undo()
    assert (run.out / "clip").exists()
    assert not (run.out / "vae").exists()
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "judge/config.json").write_text("{}", "utf-8")
    with pytest.raises(RefusedError, match=r"was started from another model than .*: give that, or a new folder"):
        run.begin_from(other)
    assert not (run.out / "vae").exists()
    run.begin_from(model)
    assert all((run.out / name).is_dir() for name in ("tokenizer", "clip", "vision", "vae", "judge", "start"))


@pytest.mark.parametrize("own", ["vae", "unet", "pool.npz"])
def test_a_run_that_made_parts_of_its_own_takes_no_others(own, run, finished):
    source = finished.out / own
    (shutil.copytree if source.is_dir() else shutil.copy)(source, run.out / own)
    before = sorted(path.name for path in run.out.iterdir())
    with pytest.raises(RefusedError, match=rf"has its own {own}, which .* does not fit: give a new folder"):
        run.begin_from(finished.out / "model")
    assert sorted(path.name for path in run.out.iterdir()) == before


def test_what_is_held_out_trains_nothing_but_the_judge(finished, few):
    known = [concept.code for concept in few if concept.part in ("train", "judged")]
    assert [concept.code for concept in finished.trained] == known
    secret = {concept.code for concept in few if not concept.trained}
    assert not {concept.code for concept in finished.painter.concepts} & secret
    assert not set(finished.painter.styles) & set(HELD_OUT_STYLES)
    with np.load(finished.out / "pool.npz") as pool:
        assert not set(pool["styles"].tolist()) & set(HELD_OUT_STYLES)
        subjects, seconds = pool["rows"][:, 0], pool["rows"][:, 2]
        assert subjects.max() < len(known)
        assert 0 <= seconds.max() < len(known)
    asked = json.loads((finished.out / "judge/config.json").read_text("utf-8"))["codes"]
    assert asked == [concept.code for concept in few if concept.part != "train"]


def test_with_other_held_out_pictures_and_names_only_the_judge_is_another(finished, tmp_path):
    """The other way round: what was made without them is the same to the last bit."""
    secret = [concept.code for concept in finished.concepts if not concept.trained]
    named = tuple(c if c.trained else replace(c, noun="zzz", category="zzz") for c in finished.concepts)
    run = Run(tmp_path / "run", finished.recipe, named)
    run.out.mkdir()
    for name in ("pictures.npz", "redrawn.npz"):
        in_negative(Library.load(finished.out / name), secret).save(run.out / name)
    shutil.copytree(finished.out / "tokenizer", run.out / "tokenizer")  # equally frequent tokens are ranked by chance
    assert list(tokens.corpus(run.painter, 200)) == list(tokens.corpus(finished.painter, 200))
    assert all(run_stage(run, stage) for stage in ("clip", "vae", "judge", "pool", "unet", "vision"))
    same = {stage: same_weights(finished.out / stage, run.out / stage, file) for stage, file in WEIGHTS.items()}
    assert same == {"clip": True, "vision": True, "vae": True, "judge": False, "unet": True}
    with np.load(finished.out / "pool.npz") as one, np.load(run.out / "pool.npz") as other:
        assert all((one[key] == other[key]).all() for key in one)


def in_negative(library, codes):
    """The same with every picture of these things, and every one in a held-out style, in negative."""
    hidden = np.isin(library.codes, codes) | np.isin(library.styles, HELD_OUT_STYLES)
    assert hidden.any()
    rgba_NHW4 = library.rgba_NHW4.copy()
    rgba_NHW4[hidden, ..., :3] = 255 - rgba_NHW4[hidden, ..., :3]
    return replace(library, rgba_NHW4=rgba_NHW4)


def same_weights(one, other, file):
    first, second = load_file(one / file), load_file(other / file)
    return all(torch.equal(first[name], second[name]) for name in first)


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


@pytest.mark.parametrize("flag", ["--unet-steps", "--threads"])
def test_the_command_refuses_numbers_that_cannot_be(flag, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), flag, "0"]) == 1
    assert f"error: argument {flag}: must be at least 1, not 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_says_why_a_model_is_refused(run, finished, capsys):
    shutil.copytree(finished.out / "vae", run.out / "vae")
    flags = ["--out", str(run.out), "--threads", "1", "--start", str(finished.out / "model")]
    assert command.main(flags) == 1
    assert f"error: {run.out} has its own vae" in capsys.readouterr().err


def test_the_command_says_which_flags_did_not_reach_the_unet(run, finished, capsys):
    run.begin_from(finished.out / "model")
    shutil.copytree(finished.out / "unet", run.out / "unet")
    flags = ["--out", str(run.out), "--threads", "1", "--stage", "unet"]
    assert command.main(flags) == 0
    assert capsys.readouterr().err == "unet: there already\n"
    assert command.main([*flags, "--unet-steps", "9", "--start", str(finished.out / "model")]) == 0
    said = capsys.readouterr().err
    assert "unet: there already\nwarning: --unet-steps and --start not used" in said
    assert str(run.checkpoint("unet")) in said


def test_the_rate_rises_stays_and_falls_to_zero():
    schedule = Schedule(steps=100, lr=1.0, warmup=10, decay=0.2)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(10) == schedule.rate(80) == 1
    assert 0 < schedule.rate(99) < schedule.rate(90) < 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"decay": 2.0}, {"every": 0}])
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="a schedule needs"):
        Schedule(**{"steps": 10, "lr": 1.0, **wrong})
