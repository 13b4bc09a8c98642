"""CLIP's second phase: a finer image tower learns to read what the finished text tower says (after arXiv 2111.07991).

The text tower is frozen by now, for the U-Net draws by it; so only pictures move towards words. With u_i a picture's
normalised embedding, w_k that of concept k's name in a template of the step, c_j that of caption j, s the scale:

    loss = CE_k(s u_i . w_k)                      pictures in any hue, blurred, cut: what is it, in whatever style
         + CE_j(s u_i . c_j), symmetric           as in the first phase: which words belong to which picture
"""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionConfig

from cp_train.pretrain import clip
from cp_train.pretrain.augment import moved, relit
from cp_train.pretrain.captions import with_article
from cp_train.pretrain.judge import disturbed, hardness
from cp_train.pretrain.loop import Schedule, Trainer, dice, generator, quick
from cp_train.pretrain.scenes import Painter, tensor
from cp_train.pretrain.splits import Concept

_SCHEDULE = Schedule(steps=4000, lr=1e-3, decay=0.4, weight_decay=0.1, ema=0.998, every=250)
TEMPLATES = ("a picture of {}", "an image of {}", "a photo of {}", "{}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Size and training of the finer image tower."""

    width: int = 128
    layers: int = 5
    patch: int = 8
    batch: int = 64
    """Pictures of each of the two kinds in a step."""
    seed: int = 16
    schedule: Schedule = field(default_factory=lambda: _SCHEDULE)


@dataclass(frozen=True)
class Words:
    """What a step's pictures should be near: B labels among K names, then B captions."""

    names_KD: Tensor
    labels_B: Tensor
    captions_BD: Tensor
    same_BB: Tensor
    """Which captions read the same."""


def train(config: VisionConfig, first: Any, tokenizer: CLIPTokenizer, painter: Painter, checkpoint: Path) -> Any:
    """The CLIPModel `first` with a new image tower (averaged weights); its text side is unchanged."""
    trainer = Trainer("vision", build(config, first), config.schedule, checkpoint)
    names_TKD = _names(first, tokenizer, painter.concepts)

    def loss(step: int) -> tuple[Tensor, str]:
        chance, noise = dice(config.seed, step), generator(config.seed, step)
        labels_B = torch.tensor(chance.choices(range(len(painter.concepts)), k=config.batch))
        plain_BCHW = tensor([painter.single(chance, painter.concepts[k]) for k in labels_B.tolist()])
        scenes_BCHW, texts = clip.batch(painter, config.batch, chance)
        hard = hardness(step, config.schedule.steps)
        x_BCHW = torch.cat([disturbed(plain_BCHW, noise, hard), relit(moved(scenes_BCHW, noise), noise)])
        names_KD, captions_BD = names_TKD[step % len(TEMPLATES)], _captions(first, tokenizer, texts)
        return objective(trainer.model, x_BCHW, Words(names_KD, labels_B, captions_BD, clip.alike(texts)))

    trainer.run(loss)
    return trainer.averaged()


def build(config: VisionConfig, first: Any) -> Any:
    """`first` with an untrained image tower; only that and the scale will learn."""
    torch.manual_seed(config.seed)
    whole = deepcopy(first.config)
    whole.vision_config = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=max(1, config.width // 32),
        image_size=first.config.vision_config.image_size,
        patch_size=config.patch,
        projection_dim=whole.projection_dim,
    )
    model: Any = CLIPModel(whole)
    model.set_attn_implementation("eager")
    model.logit_scale.data.copy_(first.logit_scale.data)
    for part in ("text_model", "text_projection"):
        getattr(model, part).load_state_dict(getattr(first, part).state_dict())
        getattr(model, part).requires_grad_(False)
    return model


def objective(model: Any, x_BCHW: Tensor, words: Words) -> tuple[Tensor, str]:
    """The loss above: first the labelled pictures, then those with captions."""
    with quick():
        u_BD = model.get_image_features(pixel_values=x_BCHW).pooler_output
    named_BD, told_BD = functional.normalize(u_BD.float(), dim=-1).split([len(words.labels_B), len(words.captions_BD)])
    scale = model.logit_scale.exp().clamp(max=100)
    logits_BK = scale * named_BD @ words.names_KD.T
    naming = functional.cross_entropy(logits_BK, words.labels_B, label_smoothing=0.05)
    telling = clip.contrast(scale * told_BD @ words.captions_BD.T, words.same_BB)
    hit = (logits_BK.argmax(1) == words.labels_B).float().mean()
    said = f"loss {naming.item():.3f} + {telling.item():.3f}, top-1 {hit:.2f} of {len(words.names_KD)}"
    return naming + telling, said


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
