"""CLIP's second phase: another image tower learns to read what the finished text tower says (after arXiv 2111.07991).

The text tower is frozen by now, for the U-Net draws by it; so only pictures move towards words. The new tower is
convolutional (`cp_train/evaluation/tower.py`), trained as the judge is. With u_i a picture's
normalised embedding, w_k that of concept k's name in a template of the step, c_j that of caption j, s the scale:

    loss = CE_k(s u_i . w_k)                      pictures in any hue, blurred, cut: what is it, in whatever style
         + CE_k(16 f_i . p_k)                     the same with classes p of its own, from the features f beneath u
         + CE_j(s u_i . c_j), symmetric           as in the first phase: which words belong to which picture

Words alone teach slowly, and are hard to hit: of 362 names most have another one within a cosine of 0.84. So the
classes tell the features apart, and in the end the projection, u = W [f, softmax(16 f . p)], learns to read anew, with
all else as it is, from W's columns for the classes being their names.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from cp_train.evaluation.judge import JudgeSize
from cp_train.evaluation.tower import Tower, TowerConfig, register
from cp_train.pretrain import clip
from cp_train.pretrain.augment import moved, relit
from cp_train.pretrain.captions import with_article
from cp_train.pretrain.judge import disturbed, hardness, mixed
from cp_train.pretrain.loop import Schedule, Trainer, autocast, dice, generator
from cp_train.pretrain.scenes import Painter, tensor
from cp_train.pretrain.splits import Concept

_SCHEDULE = Schedule(steps=5000, lr=2e-3, decay=0.4, weight_decay=0.05, ema=0.998, every=250)
_READING = Schedule(steps=600, lr=1e-3, warmup=50, decay=0.5, weight_decay=0.0, ema=0.99, every=200)
_SMOOTHING = 0.1
TEMPLATES = ("a picture of {}", "an image of {}", "a photo of {}", "{}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Size and training of the second image tower."""

    widths: tuple[int, ...] = JudgeSize.widths
    blocks: int = 1
    named: int = 64
    """Pictures of single things in a step."""
    told: int = 24
    """Scenes with captions in a step."""
    scale: float = 50.0
    """s at first; it is learned, up to 100."""
    seed: int = 16
    schedule: Schedule = field(default_factory=lambda: _SCHEDULE)
    reading: Schedule = field(default_factory=lambda: _READING)
    """Of the projection alone, after the rest."""


@dataclass(frozen=True)
class Words:
    """What a step's pictures should be near: labels among K names of the first of them, then captions."""

    names_KD: Tensor
    labels_B: Tensor
    captions_BD: Tensor
    same_BB: Tensor
    """Which captions read the same."""


def train(config: VisionConfig, first: Any, tokenizer: CLIPTokenizer, painter: Painter, checkpoint: Path) -> Any:
    """The text side of the CLIPModel `first`, unchanged, with a new image tower (averaged weights)."""
    model = build(config, first, len(painter.concepts))
    names_TKD = _names(first, tokenizer, painter.concepts)

    def shown(step: int, seed: int, hard: float) -> tuple[Tensor, Words, torch.Generator]:
        chance, noise = dice(seed, step), generator(seed, step)
        labels_B = torch.tensor(chance.choices(range(len(painter.concepts)), k=config.named))
        drawn = [painter.single(chance, painter.concepts[k], pictograms=0.1 * hard) for k in labels_B.tolist()]
        scenes_BCHW, texts = clip.batch(painter, config.told, chance)
        x_BCHW = torch.cat([disturbed(tensor(drawn), noise, hard), relit(moved(scenes_BCHW, noise), noise)])
        names_KD, captions_BD = names_TKD[step % len(TEMPLATES)], _captions(first, tokenizer, texts)
        return x_BCHW, Words(names_KD, labels_B, captions_BD, clip.alike(texts)), noise

    def learning(step: int) -> tuple[Tensor, str]:
        hard = hardness(step, config.schedule.steps)
        x_BCHW, words, noise = shown(step, config.seed, hard)
        return learn(model, x_BCHW, words, noise, restyle=0.5 * hard)

    def reading(step: int) -> tuple[Tensor, str]:
        x_BCHW, words, _ = shown(step, config.seed + 1, 1.0)
        return read(model, x_BCHW, words)

    trainer = Trainer("vision", model, config.schedule, checkpoint, asdict(config))
    trainer.run(learning)
    trainer.averaged()
    model.vision_model.requires_grad_(False)
    with torch.no_grad():
        model.visual_projection.weight[:, -len(painter.concepts) :] = names_TKD.mean(0).T
        model.logit_scale.fill_(math.log(config.scale))
    trainer = Trainer("reading", model, config.reading, checkpoint.with_stem("reading"), asdict(config))
    trainer.run(reading)
    return trainer.averaged()


def build(config: VisionConfig, first: Any, classes: int) -> Any:
    """The text side of `first` with an untrained image tower; only that, its projection and the scale will learn."""
    register()
    torch.manual_seed(config.seed)
    side = first.config.vision_config.image_size
    tower, text = (
        Tower(TowerConfig(config.widths, config.blocks, classes, side)),
        CLIPTextModel(first.config.text_config),
    )
    whole = VisionTextDualEncoderConfig.from_vision_text_configs(
        tower.config, text.config, projection_dim=first.config.projection_dim
    )
    model: Any = VisionTextDualEncoderModel(whole, tower, text)
    model.logit_scale.data.fill_(math.log(config.scale))
    for part in ("text_model", "text_projection"):
        getattr(model, part).load_state_dict(getattr(first, part).state_dict())
        getattr(model, part).requires_grad_(False)
    return model


def learn(model: Any, x_BCHW: Tensor, words: Words, chance: torch.Generator, *, restyle: float) -> tuple[Tensor, str]:
    """The loss above, of features alone and in mixed styles: first the labelled pictures, then those with captions."""
    tower, named = model.vision_model, len(words.labels_B)
    with autocast():
        f_BD = mixed(tower.trunk, x_BCHW, chance, restyle)
        u_BD = functional.linear(f_BD, model.visual_projection.weight[:, : f_BD.shape[1]])
        own_BK = tower.logits(f_BD[:named])
    apart = functional.cross_entropy(own_BK.float(), words.labels_B, label_smoothing=_SMOOTHING)
    loss, said = _said(model, u_BD, words)
    return loss + apart, f"classes {apart.item():.2f}, {said}"


def read(model: Any, x_BCHW: Tensor, words: Words) -> tuple[Tensor, str]:
    """The loss above without the classes', of all that the finished tower tells."""
    with torch.no_grad(), autocast():
        seen_BE = model.vision_model(pixel_values=x_BCHW).pooler_output
    return _said(model, model.visual_projection(seen_BE.float()), words)


def _said(model: Any, u_BD: Tensor, words: Words) -> tuple[Tensor, str]:
    """Names and captions: the parts of the loss that are about words."""
    u_BD, named = functional.normalize(u_BD.float(), dim=-1), len(words.labels_B)
    scale = model.logit_scale.exp().clamp(max=100)
    logits_BK = scale * u_BD[:named] @ words.names_KD.T
    naming = functional.cross_entropy(logits_BK, words.labels_B, label_smoothing=_SMOOTHING)
    telling = clip.contrast(scale * u_BD[named:] @ words.captions_BD.T, words.same_BB)
    hit = (logits_BK.argmax(1) == words.labels_B).float().mean()
    said = f"names {naming.item():.2f}, captions {telling.item():.2f}, top-1 {hit:.2f} of {len(words.names_KD)}"
    return naming + telling, said


@torch.no_grad()
def _captions(model: Any, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
    with autocast():
        out = model.get_text_features(input_ids=tokens.input_ids).pooler_output
    return functional.normalize(out.float(), dim=-1)


def _names(model: nn.Module, tokenizer: CLIPTokenizer, concepts: tuple[Concept, ...]) -> Tensor:
    """Embeddings [T, K, D] of every concept's name in every template."""
    texts = [[form.format(with_article(concept.noun)) for concept in concepts] for form in TEMPLATES]
    return torch.stack([clip.text_features(model, tokenizer, row) for row in texts])
