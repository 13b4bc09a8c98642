"""CLIP: which caption belongs to which picture (arXiv 2103.00020), in transformers' CLIPModel.

With u_i the picture's and w_j the caption's normalised embedding and s the learned scale, the loss is the mean
of both cross-entropies of the logits s u_i . w_j against j = i; captions that read the same count as one.
A batch holds every concept twice, in two scenes of its own: what tells those apart (a colour, a ground, a
companion, the medium) has to be read from the words too.

The text tower is the pipeline's text encoder. It stays frozen while the U-Net learns, which reads its tokens through
linear projections: concepts that differ only along directions of little variance are hard to tell apart there. The
contrastive loss alone leaves nine directions of 192; so the coding rate (arXiv 2006.08558) of what even attention would
read, the mean z of a caption's tokens, is raised beside it:

    R(Z) = (1 / 2D) log det(I + C / g),    C the covariance of z over captions, g the variance that counts as none
    loss = contrastive - s R(Z)
"""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from cp_train.pretrain.augment import moved, relit
from cp_train.pretrain.captions import caption, neutral
from cp_train.pretrain.loop import Schedule, Trainer, autocast, dice, generator
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.render import on
from cp_train.pretrain.scenes import Painter, tensor
from cp_train.pretrain.splits import HELD_OUT_STYLES, Concept

_SCHEDULE = Schedule(steps=1500, lr=1.5e-3, decay=0.3, weight_decay=0.1, ema=0.995, every=250)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Size and training of CLIP."""

    text_width: int = 192
    text_layers: int = 4
    vision_width: int = 192
    vision_layers: int = 4
    patch: int = 16
    batch: int = 128
    spread: float = 1.0
    """s, the weight of the captions' coding rate."""
    seed: int = 12
    schedule: Schedule = field(default_factory=lambda: _SCHEDULE)


def build(config: ClipConfig, tokenizer: CLIPTokenizer, size: int = 64) -> Any:
    """An untrained CLIPModel for this tokenizer."""
    torch.manual_seed(config.seed)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "hidden_size": config.text_width,
        "intermediate_size": 3 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": max(1, config.text_width // 48),
        "max_position_embeddings": tokenizer.model_max_length,
        "vocab_size": len(tokenizer),
        "projection_dim": config.text_width,
        "pad_token_id": tokenizer.pad_token_id,
        **ends,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": max(1, config.vision_width // 32),
        "image_size": size,
        "patch_size": config.patch,
        "projection_dim": config.text_width,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.text_width))
    model.set_attn_implementation("eager")  # faster than the fused one at these lengths, on a CPU
    return model


def train(config: ClipConfig, tokenizer: CLIPTokenizer, painter: Painter, checkpoint: Path) -> Any:
    """The trained CLIPModel with averaged weights."""
    size = painter.pictures.rgba_NHW4.shape[1]
    trainer = Trainer("clip", build(config, tokenizer, size), config.schedule, checkpoint, asdict(config))

    def loss(step: int) -> tuple[Tensor, str]:
        chance = dice(config.seed, step)
        x_BCHW, texts = batch(painter, config.batch, chance)
        noise = generator(config.seed, step)
        return objective(trainer.model, relit(moved(x_BCHW, noise), noise), texts, tokenizer, spread=config.spread)

    trainer.run(loss)
    return trainer.averaged()


def batch(painter: Painter, size: int, chance: random.Random) -> tuple[Tensor, list[str]]:
    """Pictures [B, 3, H, W] and their captions: B / 2 concepts in two scenes each."""
    half = min(size // 2, len(painter.concepts))
    pictures, texts = [], []
    for concept in chance.sample(painter.concepts, half) * 2:
        scene = painter.scene(chance, concept)
        pictures.append(painter.paint(scene))
        texts.append(caption(scene, chance, painter.own_colour(scene)))
    return tensor(pictures), texts


def objective(
    model: Any, x_BCHW: Tensor, texts: list[str], tokenizer: CLIPTokenizer, *, spread: float = 0.0
) -> tuple[Tensor, str]:
    """The loss above, and the share of pictures whose own caption fits best."""
    with autocast():
        out = model(pixel_values=x_BCHW, **encode(tokenizer, texts))
    logits_BB = out.logits_per_image.float()
    same_BB = alike(texts)
    loss = contrast(logits_BB, same_BB)
    hit = same_BB.gather(1, logits_BB.argmax(1, keepdim=True)).float().mean()
    rate = coding_rate(out.text_model_output.last_hidden_state.float().mean(1))
    said = f"loss {loss.item():.3f}, top-1 {hit:.2f} of {len(texts)}, rate {rate.item():.3f}"
    return loss - spread * rate, said


def alike(texts: list[str]) -> Tensor:
    """Which captions read the same [B, B]."""
    return torch.tensor([[one == other for other in texts] for one in texts])


def contrast(logits_BB: Tensor, same_BB: Tensor) -> Tensor:
    """The mean of both cross-entropies of pictures against captions, [B, B]."""
    target_BB = same_BB / same_BB.sum(1, keepdim=True)
    both = functional.cross_entropy(logits_BB, target_BB) + functional.cross_entropy(logits_BB.T, target_BB)
    return both / 2


def coding_rate(z_BD: Tensor, least: float = 0.01) -> Tensor:
    """R(Z) above; `least` is g."""
    count, width = z_BD.shape
    centred_BD = z_BD - z_BD.mean(0)
    rate: Tensor = torch.logdet(torch.eye(width) + centred_BD.T @ centred_BD / (least * count)) / (2 * width)
    return rate


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> dict[str, Tensor]:
    """Token ids [B, L] padded to the full length and not masked: as a Stable Diffusion pipeline reads prompts."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return {"input_ids": tokens.input_ids}


@torch.no_grad()
def image_features(model: Any, x_NCHW: Tensor) -> Tensor:
    """Normalised picture embeddings [N, D]."""
    parts = [model.get_image_features(pixel_values=x).pooler_output for x in x_NCHW.split(64)]
    return functional.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def text_features(model: Any, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Normalised caption embeddings [N, D]."""
    tokens = encode(tokenizer, texts)
    return functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def retrieval(
    model: Any, tokenizer: CLIPTokenizer, pictures: Library, concepts: tuple[Concept, ...], gallery: int = 400
) -> dict[str, float]:
    """Text-to-image recall at 1 and 5 among `gallery` held-out pairs: concepts it knows in styles it never saw.

    A concept may stand in the gallery in both held-out styles; either picture is a hit for its caption.
    """
    pairs = pictures.select(concepts, HELD_OUT_STYLES)
    rows = sorted(dice(1).sample(range(len(pairs)), min(gallery, len(pairs))))
    nouns = {concept.code: concept.noun for concept in concepts}
    codes = [str(pairs.codes[row]) for row in rows]
    images_ND = image_features(model, tensor([on(pairs.rgba_NHW4[row]) for row in rows]))
    texts_ND = text_features(model, tokenizer, [neutral(nouns[code]) for code in codes])
    ranked = (texts_ND @ images_ND.T).argsort(dim=1, descending=True)[:, :5].tolist()
    hits = [[codes[column] == code for column in best] for code, best in zip(codes, ranked, strict=True)]
    size = {"pairs": len(codes), "concepts": len(set(codes))}
    return {"at_1": sum(h[0] for h in hits) / len(hits), "at_5": sum(any(h) for h in hits) / len(hits), **size}
