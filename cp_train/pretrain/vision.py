"""CLIP's second phase: another image tower learns to read what the finished text tower says (after arXiv 2111.07991).

The text tower is frozen by now, for the U-Net draws by it; so only pictures move towards words. The new tower is
convolutional (`cp_train/evaluation/tower.py`), trained as the judge is. With u_i a picture's
normalised embedding, w_k that of concept k's name in a template of the step, c_j that of caption j, s the scale:

    loss = CE_k(s u_i . w_k)                      pictures in any hue, blurred, cut: what is it, in whatever style
         + CE_k(16 f_i . p_k)                     the same with classes p of its own, from the features f beneath u
         + CE_j(s u_i . c_j), symmetric           as in the first phase: which words belong to which picture

The words alone teach slowly: of 362 names most have another one within a cosine of 0.84, so s begins large, and the
classes, which are dropped in the end, tell the features apart first.
"""

import math
from dataclasses import dataclass, field
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
from cp_train.pretrain.loop import Schedule, Trainer, dice, generator, quick
from cp_train.pretrain.scenes import Painter, tensor
from cp_train.pretrain.splits import Concept

_SCHEDULE = Schedule(steps=5000, lr=2e-3, decay=0.4, weight_decay=0.05, ema=0.998, every=250)
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
    pupil = Pupil(build(config, first), len(painter.concepts))
    trainer = Trainer("vision", pupil, config.schedule, checkpoint)
    names_TKD = _names(first, tokenizer, painter.concepts)

    def loss(step: int) -> tuple[Tensor, str]:
        chance, noise = dice(config.seed, step), generator(config.seed, step)
        labels_B = torch.tensor(chance.choices(range(len(painter.concepts)), k=config.named))
        hard = hardness(step, config.schedule.steps)
        drawn = [painter.single(chance, painter.concepts[k], pictograms=0.1 * hard) for k in labels_B.tolist()]
        scenes_BCHW, texts = clip.batch(painter, config.told, chance)
        x_BCHW = torch.cat([disturbed(tensor(drawn), noise, hard), relit(moved(scenes_BCHW, noise), noise)])
        names_KD, captions_BD = names_TKD[step % len(TEMPLATES)], _captions(first, tokenizer, texts)
        words = Words(names_KD, labels_B, captions_BD, clip.alike(texts))
        return objective(pupil, x_BCHW, words, noise, restyle=0.5 * hard)

    trainer.run(loss)
    trainer.averaged()
    return pupil.clip


class Pupil(nn.Module):
    """The model while it is trained: with classes of its own beside the words."""

    def __init__(self, clip: Any, classes: int) -> None:
        super().__init__()
        self.clip = clip
        self.classes = nn.Parameter(0.1 * torch.randn(classes, clip.vision_embed_dim))

    def forward(self, x_BCHW: Tensor, chance: torch.Generator, restyle: float) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D], and logits [B, K] of its classes."""
        f_BD = mixed(self.clip.vision_model.trunk, x_BCHW, chance, restyle)
        logits_BK = JudgeSize.scale * f_BD @ functional.normalize(self.classes, dim=-1).T
        return functional.normalize(self.clip.visual_projection(f_BD).float(), dim=-1), logits_BK


def build(config: VisionConfig, first: Any) -> Any:
    """The text side of `first` with an untrained image tower; only that, its projection and the scale will learn."""
    register()
    torch.manual_seed(config.seed)
    side = first.config.vision_config.image_size
    tower, text = Tower(TowerConfig(config.widths, config.blocks, side)), CLIPTextModel(first.config.text_config)
    whole = VisionTextDualEncoderConfig.from_vision_text_configs(
        tower.config, text.config, projection_dim=first.config.projection_dim
    )
    model: Any = VisionTextDualEncoderModel(whole, tower, text)
    model.logit_scale.data.fill_(math.log(config.scale))
    for part in ("text_model", "text_projection"):
        getattr(model, part).load_state_dict(getattr(first, part).state_dict())
        getattr(model, part).requires_grad_(False)
    return model


def objective(
    pupil: Pupil, x_BCHW: Tensor, words: Words, chance: torch.Generator, *, restyle: float
) -> tuple[Tensor, str]:
    """The loss above: first the labelled pictures, then those with captions, in mixed styles."""
    with quick():
        u_BD, own_BK = pupil(x_BCHW, chance, restyle)
    named = len(words.labels_B)
    scale = pupil.clip.logit_scale.exp().clamp(max=100)
    logits_BK = scale * u_BD[:named] @ words.names_KD.T
    naming, telling_apart = (
        functional.cross_entropy(logits.float(), words.labels_B, label_smoothing=0.1)
        for logits in (logits_BK, own_BK[:named])
    )
    telling = clip.contrast(scale * u_BD[named:] @ words.captions_BD.T, words.same_BB)
    hit = (logits_BK.argmax(1) == words.labels_B).float().mean()
    parts = " + ".join(f"{part.item():.2f}" for part in (naming, telling_apart, telling))
    return naming + telling_apart + telling, f"loss {parts}, top-1 {hit:.2f} of {len(words.names_KD)}"


@torch.no_grad()
def _captions(model: Any, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
    with quick():
        out = model.get_text_features(input_ids=tokens.input_ids).pooler_output
    return functional.normalize(out.float(), dim=-1)


def _names(model: nn.Module, tokenizer: CLIPTokenizer, concepts: tuple[Concept, ...]) -> Tensor:
    """Embeddings [T, K, D] of every concept's name in every template."""
    texts = [[form.format(with_article(concept.noun)) for concept in concepts] for form in TEMPLATES]
    return torch.stack([clip.text_features(model, tokenizer, row) for row in texts])
