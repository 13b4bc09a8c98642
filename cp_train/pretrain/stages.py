"""The recipe's stages, in order; each leaves its result in the output folder and is skipped once that is there.

    pictures   packages -> pictures.npz, provenance.json
    redraw     packages -> redrawn.npz
    tokenizer  captions -> tokenizer/
    clip       -> clip/               vision -> vision/, CLIP with another image tower
    vae        -> vae/                judge  -> judge/
    pool       VAE latents of the training scenes -> pool.npz
    unet       -> unet/
    export     -> model/pipeline, model/clip, model/judge: float16, as shipped
    evaluate   -> model/metrics.json, model/judged.png, model/composed.png
    personalize -> model/personalization.json, model/personalized.png, model/in_a_row.png
    card       -> model/README.md, model/provenance.json

Long stages keep a checkpoint in checkpoints/ and continue from it. `begin_from` puts the parts of a model that ships
in the place of the first stages' results, and its U-Net where the `unet` stage begins; started-from.txt names them.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoModel, CLIPTextModel, CLIPTokenizer

from cp_train.benchmark import personalization
from cp_train.benchmark.personalization import Trial
from cp_train.benchmark.subjects import shipped
from cp_train.denoise import LoopConfig
from cp_train.evaluation.tower import register
from cp_train.files import write_whole
from cp_train.fisher import FisherConfig
from cp_train.methods import DEFAULT
from cp_train.plan import LearningConfig
from cp_train.pretrain import clip, evaluate, judge, pool, tokens, unet, vae, vision
from cp_train.pretrain.card import card
from cp_train.pretrain.clip import ClipConfig
from cp_train.pretrain.judge import JudgeConfig
from cp_train.pretrain.loop import Schedule
from cp_train.pretrain.pictures import Library, library, redrawings
from cp_train.pretrain.scenes import Painter
from cp_train.pretrain.splits import JUDGE_STYLES, TRAIN_STYLES, Concept, concepts
from cp_train.pretrain.unet import UNetConfig
from cp_train.pretrain.vae import VaeConfig
from cp_train.pretrain.vision import VisionConfig
from services.errors import RefusedError
from services.manifest import sha256_of_files

START = "start"
_STARTED_FROM = "started-from.txt"
_SHIPPED = {
    "tokenizer": "pipeline/tokenizer",
    "clip": "clip",
    "vision": "clip",
    "vae": "pipeline/vae",
    "judge": "judge",
    START: "pipeline/unet",
}
"""Where a stage's result is in a model that ships."""
_OWN = (*_SHIPPED, "pool.npz", "unet")
"""The parts that a run makes without a model to start from, and what it makes with them: no other parts fit these."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one run."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vocabulary: int = 2400
    captions: int = 20_000
    variants: int = 4
    pairs: int = 14_000
    personalized: int = 8
    """Held-out concepts that are learned to measure by."""
    learning: LearningConfig = field(default_factory=lambda: LearningConfig.for_method(DEFAULT))
    """How each of them is learned."""

    def with_unet_steps(self, steps: int) -> "Recipe":
        """The same with a longer or shorter training of the U-Net."""
        return replace(self, unet=replace(self.unet, schedule=replace(self.unet.schedule, steps=steps)))

    @classmethod
    def tiny(cls, steps: int = 4) -> "Recipe":
        """Every part as small as it goes, to try the machinery in seconds; what it makes draws nothing."""
        brief = Schedule(steps=steps, lr=1e-3, warmup=1, every=max(1, steps // 2))
        return cls(
            clip=ClipConfig(
                text_width=48, text_layers=1, vision_width=32, vision_layers=1, patch=8, batch=8, schedule=brief
            ),
            vision=VisionConfig(widths=(8, 16), named=4, told=4, schedule=brief, reading=brief),
            vae=VaeConfig(channels=(8, 8), latent=4, norm_groups=4, batch=4, schedule=brief),
            judge=JudgeConfig(widths=(8, 16), blocks=1, batch=4, schedule=brief),
            unet=UNetConfig(channels=(8, 16), heads=2, norm_groups=4, batch=4, schedule=brief),
            vocabulary=700,
            captions=200,
            variants=1,
            pairs=16,
            personalized=1,
            learning=LearningConfig.for_method(
                DEFAULT, rank=2, loop=LoopConfig(steps=steps, batch_size=2), fisher=FisherConfig(batches=1)
            ),
        )


@dataclass(frozen=True)
class Run:
    """One run of a recipe in one folder; `concepts` is the whole list but for tests."""

    out: Path
    recipe: Recipe
    concepts: tuple[Concept, ...] = field(default_factory=concepts)

    @property
    def trained(self) -> tuple[Concept, ...]:
        """What the base model learns."""
        return tuple(concept for concept in self.concepts if concept.trained)

    @cached_property
    def pictures(self) -> Library:
        """The picture library."""
        return library(self.out)

    @cached_property
    def redrawn(self) -> Library:
        """The same in other hands."""
        return redrawings(self.out)

    @property
    def painter(self) -> Painter:
        """Paints what the base model learns."""
        return Painter(self.pictures, self.trained, TRAIN_STYLES)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The trained tokenizer."""
        return CLIPTokenizer.from_pretrained(self.out / "tokenizer")

    @property
    def clip(self) -> Any:
        """The trained CLIP, of which only the text tower is used further."""
        return _opened(self.out / "clip")

    @property
    def whole_clip(self) -> Any:
        """The same text tower with the second image tower: what ships."""
        return _opened(self.out / "vision")

    @property
    def vae(self) -> Any:
        """The trained autoencoder."""
        return AutoencoderKL.from_pretrained(self.out / "vae").eval()

    def checkpoint(self, stage: str) -> Path:
        """Where a long stage keeps its state."""
        return self.out / "checkpoints" / f"{stage}.pt"

    @property
    def start(self) -> Path | None:
        """The U-Net to begin from, if there is one."""
        folder = self.out / START
        return folder if folder.is_dir() else None

    def begin_from(self, model: Path) -> None:
        """Take over a model that ships; after an interruption, what is still missing of it.

        Raises:
            FileNotFoundError: a part of it is missing.
            RefusedError: this folder has parts of its own, or another model's.
        """
        parts = sorted(set(_SHIPPED.values()))
        if missing := [part for part in parts if not (model / part).is_dir()]:
            raise FileNotFoundError(f"{model} has no {missing[0]}: name the folder of a model this recipe exported")
        named = "".join(f"{part} {sha256_of_files(model / part)}\n" for part in parts)
        told = self.out / _STARTED_FROM
        if told.exists() and told.read_text("utf-8") != named:
            raise RefusedError(f"{self.out} was started from another model than {model}: give that, or a new folder.")
        if not told.exists() and (own := [name for name in _OWN if (self.out / name).exists()]):
            raise RefusedError(f"{self.out} has its own {own[0]}, which {model} does not fit: give a new folder.")
        write_whole(told, named)
        for name, part in _SHIPPED.items():
            if not (self.out / name).exists():
                self.keep(name, partial(shutil.copytree, model / part, dirs_exist_ok=True))

    def keep(self, name: str, write: Callable[[Path], Any]) -> None:
        """Let `write` fill a folder, which gets its name only when it is whole."""
        unfinished = self.out / f"{name}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.replace(self.out / name)


def _opened(folder: Path) -> Any:
    """A CLIP with either image tower."""
    register()
    return AutoModel.from_pretrained(folder).eval()


def _pictures(run: Run) -> None:
    library(run.out)


def _redraw(run: Run) -> None:
    redrawings(run.out)


def _tokenizer(run: Run) -> None:
    texts = tokens.corpus(run.painter, run.recipe.captions)
    run.keep("tokenizer", tokens.build(texts, run.recipe.vocabulary).save_pretrained)


def _clip(run: Run) -> None:
    model = clip.train(run.recipe.clip, run.tokenizer, run.painter, run.checkpoint("clip"))
    run.keep("clip", model.save_pretrained)


def _vision(run: Run) -> None:
    painter = replace(run.painter, redrawn=run.redrawn)
    model = vision.train(run.recipe.vision, run.clip, run.tokenizer, painter, run.checkpoint("vision"))
    run.keep("vision", model.save_pretrained)


def _vae(run: Run) -> None:
    model = vae.train(run.recipe.vae, run.pictures.for_the_vae(), run.checkpoint("vae"))
    run.keep("vae", model.save_pretrained)


def _judge(run: Run) -> None:
    asked = tuple(concept for concept in run.concepts if concept.part != "train")
    painter, further = Painter(run.pictures, asked, JUDGE_STYLES, run.redrawn), run.pictures.others(asked, JUDGE_STYLES)
    run.keep("judge", judge.train(run.recipe.judge, painter, further, run.checkpoint("judge")).save)


def _pool(run: Run) -> None:
    made = pool.build(run.painter, run.vae, variants=run.recipe.variants, pairs=run.recipe.pairs)
    made.save(run.out / "pool.npz")


def _unet(run: Run) -> None:
    latents = pool.Pool.load(run.out / "pool.npz", run.trained)
    text = run.clip.text_model
    model = unet.train(run.recipe.unet, latents, text, run.tokenizer, run.checkpoint("unet"), start=run.start)
    run.keep("unet", model.save_pretrained)


def _export(run: Run) -> None:
    """What ships: float16 weights whose text towers say float32, the precision the other parts load in by default."""

    def write(folder: Path) -> None:
        pipeline(run).to(dtype=torch.float16).save_pretrained(folder / "pipeline")
        run.whole_clip.half().save_pretrained(folder / "clip")
        run.tokenizer.save_pretrained(folder / "clip")
        shutil.copytree(run.out / "judge", folder / "judge")
        for config in (folder / "pipeline/text_encoder/config.json", folder / "clip/config.json"):
            config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")
        for config in folder.rglob("config.json"):
            _forget_where_it_was(config)

    run.keep("model", write)


def _forget_where_it_was(config: Path) -> None:
    """Drop the path that diffusers notes of a part it has loaded."""
    facts = json.loads(config.read_text("utf-8"))
    if facts.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def pipeline(run: Run, denoiser: Any = None) -> Any:
    """The Stable Diffusion pipeline of the trained parts, or with another U-Net."""
    whole = run.clip
    text = CLIPTextModel(whole.config.text_config)
    text.load_state_dict(whole.text_model.state_dict())
    built = StableDiffusionPipeline(
        vae=run.vae,
        text_encoder=text.eval(),
        tokenizer=run.tokenizer,
        unet=denoiser or UNet2DConditionModel.from_pretrained(run.out / "unet").eval(),
        scheduler=unet.noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    built.set_progress_bar_config(disable=True)
    return built


def _evaluate(run: Run) -> None:
    folder = run.out / "model"
    whole = StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    whole.set_progress_bar_config(disable=True)
    models = evaluate.Models(whole, _opened(folder / "clip"), judge.Judge.load(folder / "judge"))
    metrics = evaluate.measure(models, run.pictures, run.concepts, folder)
    metrics["megabytes"] = evaluate.megabytes(folder)
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")


def _personalize(run: Run) -> None:
    trial = Trial(subjects=shipped("reporting")[: run.recipe.personalized], config=run.recipe.learning)
    kept = run.checkpoint("personalize").with_suffix("")
    personalization.write(run.out / "model", str(run.out / "model" / "pipeline"), trial, kept=kept)


def _card(run: Run) -> None:
    folder = run.out / "model"
    shutil.copy2(run.out / "provenance.json", folder / "provenance.json")
    write_whole(folder / "README.md", card_of(folder))


def card_of(model: Path) -> str:
    """The card of a model, from the figures that are in its folder."""
    names = ("metrics", "personalization", "provenance")
    return card(*(json.loads((model / f"{name}.json").read_text("utf-8")) for name in names))


@dataclass(frozen=True)
class Stage:
    """What makes it, what it leaves in the folder, and the stages it needs."""

    make: Callable[[Run], None]
    result: str
    needs: tuple[str, ...] = ()


STAGES = {
    "pictures": Stage(_pictures, "pictures.npz"),
    "redraw": Stage(_redraw, "redrawn.npz", ("pictures",)),
    "tokenizer": Stage(_tokenizer, "tokenizer", ("pictures",)),
    "clip": Stage(_clip, "clip", ("tokenizer",)),
    "vae": Stage(_vae, "vae", ("pictures",)),
    "judge": Stage(_judge, "judge", ("redraw",)),
    "pool": Stage(_pool, "pool.npz", ("vae",)),
    "unet": Stage(_unet, "unet", ("pool", "clip")),
    "vision": Stage(_vision, "vision", ("clip", "redraw")),
    "export": Stage(_export, "model", ("unet", "vision", "judge")),
    "evaluate": Stage(_evaluate, "model/metrics.json", ("export",)),
    "personalize": Stage(_personalize, "model/personalization.json", ("export",)),
    "card": Stage(_card, "model/README.md", ("evaluate", "personalize")),
}
"""The recipe, in order."""


def run_stage(run: Run, name: str) -> bool:
    """Make one stage unless its result is there; says whether it was made.

    Raises:
        FileNotFoundError: a stage it needs has not been made.
        RefusedError: its checkpoint was made with other settings.
        ArtworkError, UnavailableError: the drawings cannot be had or rendered.
    """
    stage = STAGES[name]
    if (run.out / stage.result).exists():
        return False
    missing = [needed for needed in stage.needs if not (run.out / STAGES[needed].result).exists()]
    if missing:
        raise FileNotFoundError(f"{name} needs {' and '.join(missing)} in {run.out}: make that first, or all stages")
    run.out.mkdir(parents=True, exist_ok=True)
    stage.make(run)
    return True
