"""The judge: small image networks that tell things apart in styles they have never seen.

They have only ever seen real artwork, and are trained by cross-entropy with label smoothing: on the 200 concepts that
they are asked about, judged and held out, and on the rest of the artwork as further classes, which are dropped in the
end. The network is in `cp_train/evaluation/judge.py`, for the metrics use it.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from cp_train.evaluation.judge import Judge, JudgeSize, Network, Trunk
from cp_train.pretrain.augment import bent, blended, blurred, cut, filtered, moved, rehued, relit, traced
from cp_train.pretrain.loop import Schedule, Trainer, autocast, dice, generator
from cp_train.pretrain.pictures import Library
from cp_train.pretrain.render import Pixels, on
from cp_train.pretrain.scenes import Painter, tensor
from cp_train.pretrain.splits import Concept

__all__ = [
    "Judge",
    "JudgeConfig",
    "accuracy",
    "disturbed",
    "features",
    "hardness",
    "mixed",
    "objective",
    "restyled",
    "train",
    "verdicts",
]

_MIXED_STAGES = 2
_SCHEDULE = Schedule(steps=6000, lr=2e-3, decay=0.4, weight_decay=0.05, ema=0.998)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(JudgeSize):
    """Size and training of the judge."""

    batch: int = 64
    further: float = 0.2
    """The share of each batch that shows further classes."""
    smoothing: float = 0.1
    seed: int = 13
    schedule: Schedule = field(default_factory=lambda: _SCHEDULE)


def train(config: JudgeConfig, painter: Painter, further: tuple[Concept, ...], checkpoint: Path) -> Judge:
    """The trained judge of the painter's concepts, its networks one after the other.

    Args:
        config: size and training.
        painter: paints the concepts, and the further ones.
        further: things beside the concepts.
        checkpoint: where a network's state is kept, each with its number at the end of the name.
    """
    judge = Judge(config, tuple(concept.code for concept in painter.concepts))
    for number in range(config.members):
        own = checkpoint.with_stem(f"{checkpoint.stem}-{number}")
        network = _train(config, painter, further, config.seed + number, own)
        network.classes = nn.Parameter(network.classes[: len(judge.codes)].detach().clone())
        judge.members[number] = network
    return judge.eval()


def _train(config: JudgeConfig, painter: Painter, further: tuple[Concept, ...], seed: int, checkpoint: Path) -> Network:
    """One network that tells the painter's concepts and the further ones apart, with averaged weights."""
    torch.manual_seed(seed)
    shown, listed = (*painter.concepts, *further), len(painter.concepts)
    network = Network(config, len(shown))
    settings = {**asdict(config), "seed": seed}
    trainer = Trainer(checkpoint.stem, network, config.schedule, checkpoint, settings)

    def loss(step: int) -> tuple[Tensor, str]:
        chance, noise = dice(seed, step), generator(seed, step)
        others = round(config.batch * config.further) if further else 0
        labels = chance.choices(range(listed), k=config.batch - others)
        labels += chance.choices(range(listed, len(shown)), k=others) if others else []
        hard = hardness(step, config.schedule.steps)
        x_BCHW = disturbed(_shown(painter, [shown[k] for k in labels], chance, noise, hard), noise, hard)
        return objective(network, x_BCHW, torch.tensor(labels), noise, smoothing=config.smoothing, restyle=0.5 * hard)

    trainer.run(loss)
    trainer.averaged()
    return network


def _shown(painter: Painter, things: list[Concept], chance: Random, noise: torch.Generator, strength: float) -> Tensor:
    """A picture of each thing, some of them blended of two."""
    drawn = [painter.single(chance, thing, pictograms=0.1 * strength) for thing in things]
    again = [
        painter.single(chance, thing, pictograms=0.1 * strength) if chance.random() < 0.4 * strength else one
        for thing, one in zip(things, drawn, strict=True)
    ]
    return blended(tensor(drawn), tensor(again), noise)


def disturbed(x_BCHW: Tensor, chance: torch.Generator, strength: float = 1.0) -> Tensor:
    """Everything that must not matter, changed; place and size always, the rest up to `strength` of 0..1."""
    x_BCHW = bent(moved(x_BCHW, chance, turn=12 + 8 * strength), chance, by=0.06 * strength)
    x_BCHW = relit(rehued(x_BCHW, chance, 0.05 * strength), chance, by=0.3 * strength)
    x_BCHW = traced(filtered(x_BCHW, chance, 0.1 * strength), chance, 0.03 * strength)
    return cut(blurred(x_BCHW, chance, 0.2 * strength), chance, 0.2 * strength)


def hardness(step: int, steps: int) -> float:
    """How hard `disturbed` works: more and more over the first two thirds of the steps."""
    return min(1.0, 1.5 * step / steps)


def objective(
    network: Network, x_BCHW: Tensor, labels_B: Tensor, chance: torch.Generator, *, smoothing: float, restyle: float
) -> tuple[Tensor, str]:
    """Smoothed cross-entropy of features whose styles are mixed, and the batch's accuracy."""
    with autocast():
        logits_BK = network.logits(mixed(network, x_BCHW, chance, restyle))
    loss = functional.cross_entropy(logits_BK.float(), labels_B, label_smoothing=smoothing)
    hit = (logits_BK.argmax(1) == labels_B).float().mean()
    return loss, f"loss {loss.item():.3f}, top-1 {hit:.2f}"


def mixed(trunk: Trunk, x_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """Features [B, D], where the style of a share of the pictures was mixed with others' in the first stages."""
    h_BCHW = trunk.stem(x_BCHW)
    for number, stage in enumerate(trunk.stages):
        h_BCHW = stage(h_BCHW)
        if number < _MIXED_STAGES:
            h_BCHW = restyled(h_BCHW, chance, share)
    return trunk.pooled(h_BCHW)


def restyled(h_BCHW: Tensor, chance: torch.Generator, share: float) -> Tensor:
    """Some pictures' channels with mean and spread mixed with another's (MixStyle, arXiv 2104.02008).

    These statistics tell how a thing is drawn more than what it is.
    """
    count = len(h_BCHW)
    mean_BC, spread_BC = h_BCHW.mean((2, 3), keepdim=True).detach(), h_BCHW.std((2, 3), keepdim=True).detach() + 1e-5
    other = torch.randperm(count, generator=chance)
    own = torch.where(torch.rand(count, generator=chance) < share, torch.rand(count, generator=chance), 1.0).view(
        -1, 1, 1, 1
    )
    mean, spread = (own * each + (1 - own) * each[other] for each in (mean_BC, spread_BC))
    return (h_BCHW - mean_BC) / spread_BC * spread + mean


@torch.no_grad()
def features(judge: Judge, pictures: list[Pixels], batch: int = 64) -> Tensor:
    """Normalised features [N, D] of RGB pictures."""
    return torch.cat([judge.features(x) for x in tensor(pictures).split(batch)])


@torch.no_grad()
def verdicts(judge: Judge, pictures: list[Pixels], among: tuple[str, ...] | None = None) -> list[str]:
    """The code of what each picture shows, of all concepts or of those named."""
    codes = among or judge.codes
    rows = [judge.codes.index(code) for code in codes]
    likeness = features(judge, pictures) @ judge.prototypes[rows].T
    return [codes[k] for k in likeness.argmax(1).tolist()]


def accuracy(judge: Judge, pictures: Library) -> float:
    """Top-1 among all its concepts on real pictures."""
    said = verdicts(judge, [on(rgba) for rgba in pictures.rgba_NHW4])
    return sum(a == str(b) for a, b in zip(said, pictures.codes, strict=True)) / max(1, len(said))
