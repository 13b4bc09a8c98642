"""What is looked at after a task: denoising losses, pictures of the concepts so far, the classifier's answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cp_train import methods
from cp_train.benchmark.settings import Examination
from cp_train.benchmark.store import Record
from cp_train.benchmark.subjects import Subject, together
from cp_train.data import cached_latents, to_bytes
from cp_train.evaluation.draw import draw_conditioned
from cp_train.evaluation.features import Agreement, Features
from cp_train.evaluation.metrics import fixed_noise_loss, trial_logits
from cp_train.methods.base import Conditioner
from cp_train.prompts import NO_NOUN, TEMPLATES, concept_prompts, plain_prompt
from services.adapter import Adapter
from services.base_model import BaseModel
from services.conditioning import condition
from services.manifest import Concept

UNSEEN = ("a glossy picture of a {}", "a {} on a pink background", "a good photo of a {}", "a 3d render of a {}")
"""Prompts that no method trains on or protects (`cp_train/prompts.py`)."""
GENERIC = (
    "a photo of a giraffe",
    "a photo of a gorilla",
    "a photo of a crocodile",
    "a photo of a whale",
    "a photo of a watermelon",
    "a photo of a kangaroo",
    "a photo of a hammer",
    "a photo of a microphone",
    "a photo of a diamond",
    "a photo of a boot",
    "a picture of a taxi",
    "a blue accordion",
    "a cartoon of a scorpion",
    "a sketch of a saxophone",
    "a red basketball on a yellow background",
    "a picture of a magnet and a feather",
)
"""Prompts of what the base knows and nobody personalizes; unseen in the same sense."""
GENERIC_SEEDS = (0, 1)
Model = Adapter | Conditioner | None
"""What draws; None: the base itself."""
PAIR = "a photo of a {} and a {}"
PAIR_SEEDS = (0, 1, 2, 3)
_ANSWERS = 30
"""Images that the classifier is asked about in all, roughly: one task's examination must not grow with its square."""


@dataclass(eq=False)
class Examiner:
    """Examines models of one base.

    Attributes:
        agreement: None where prompt agreement is not measured.
    """

    base: BaseModel
    features: Features
    agreement: Agreement | None
    how: Examination
    _latents: dict[Subject, Tensor] = field(default_factory=dict)
    _before: Tensor | None = None

    def examine(
        self, subjects: Sequence[Subject], model: Model, *, look: bool, last: bool, pairs: bool, tau: float
    ) -> tuple[Record, dict[str, Tensor]]:
        """Figures and features after the newest of the subjects was learned, and pictures to look at.

        These are named sheets [rows, columns, H, W, 3]: what was drawn of each concept, and the newest's references.

        Args:
            subjects: all so far, the newest last.
            model: what draws.
            look: also draw the earlier ones, a glimpse of each, and classify.
            last: draw everything in full, generic prompts too.
            pairs: with `last`, draw every two of them together.
            tau: temperature of the classifier's scores.
        """
        count = len(subjects)
        figures: dict[str, Any] = {"losses": [self._loss(subject, model) for subject in subjects]}
        references = self._shown(subjects[-1].images)
        met = range(1 if last else count, count + 1)  # what learns all at once meets the others here only
        features = {f"real/{n}": self.features.images(self._shown(subjects[n - 1].images)) for n in met}
        rows = []
        for number, subject in enumerate(subjects, 1):
            if number == count or last:
                rows.append(self._in_full(number, subject.concept, model, features, figures))
            elif look:
                rows.append(self._draw([plain_prompt(subject.concept)], range(self.how.glimpses), model)[0])
            else:
                continue
            features[f"glimpse/{number}"] = self.features.images(rows[-1])
        figures["drawn"] = [int(name.partition("/")[2]) for name in features if name.startswith("glimpse/")]
        if look or last:
            images = self.how.images if last else 1
            logits = {f"dc/{n}": found for n, found in enumerate(self._logits(subjects, model, tau, images), 1)}
            figures["dc"] = [correct(logits[f"dc/{n}"].mean(1), n) for n in range(1, count + 1)]
            features |= logits if last else {}
        if last:
            features |= {"generic": self._generic(model), "generic_before": self._generic_before()}
        if last and pairs:
            rows += self._pairs(subjects, model, features)
        return Record(figures, features), {"pictures": torch.stack(rows), "references": references[None]}

    def _shown(self, images: Sequence[Image.Image]) -> Tensor:
        return to_bytes(images, self.base.image_size)

    def _in_full(
        self, number: int, concept: Concept, model: Model, features: dict[str, Tensor], figures: dict[str, Any]
    ) -> Tensor:
        """Draw both cells of one concept, take in their features and agreement; returns the glimpses."""
        said = concept_prompts(TEMPLATES[:1], concept)
        trained_PSHWC = self._draw(said, range(self.how.pictures // len(said)), model)
        unseen = [template.format(f"<{concept.name}>") for template in UNSEEN]
        unseen_PSHWC = self._draw(unseen, range(self.how.pictures // len(unseen)), model)
        features[f"trained/{number}"] = self.features.images(trained_PSHWC.flatten(0, 1))
        features[f"unseen/{number}"] = self.features.images(unseen_PSHWC.flatten(0, 1))
        if self.agreement is not None:
            texts = [template.format(concept.noun or NO_NOUN) for template in UNSEEN]
            repeated = [text for text in texts for _ in range(unseen_PSHWC.shape[1])]
            figures.setdefault("clip_t", {})[str(number)] = self.agreement(unseen_PSHWC.flatten(0, 1), repeated)
        return trained_PSHWC[0, : self.how.glimpses]

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], model: Model) -> Tensor:
        kv_PLK = self._conditioned([*prompts, ""], model)
        return draw_conditioned(self.base, kv_PLK, seeds, steps=self.how.steps, precision=self.how.precision)

    def _conditioned(self, prompts: Sequence[str], model: Model) -> Tensor:
        return condition(self.base, prompts, None) if model is None else methods.condition(self.base, prompts, model)

    def _loss(self, subject: Subject, model: Model) -> float:
        kv_1LK = self._conditioned([plain_prompt(subject.concept)], model)
        return fixed_noise_loss(self.base, self._latents_of(subject), kv_1LK)

    def _latents_of(self, subject: Subject) -> Tensor:
        if subject not in self._latents:
            self._latents[subject] = cached_latents(self.base, list(subject.images), crops=0, seed=0)
        return self._latents[subject]

    def _logits(self, subjects: Sequence[Subject], model: Model, tau: float, images: int) -> Iterator[Tensor]:
        """For each concept its pictures' scores under every concept's prompt and, last, its own class noun's."""
        prompts = [plain_prompt(subject.concept) for subject in subjects]
        images = max(1, min(images, _ANSWERS // len(subjects)))
        for subject in subjects:
            noun = f"a photo of a {subject.concept.noun or NO_NOUN}"
            kv_PLK = self._conditioned([*prompts, noun], model)
            latents_NCHW = self._latents_of(subject)[:images]
            yield trial_logits(self.base, latents_NCHW, kv_PLK, tau=tau, trials=self.how.trials)

    def _generic(self, model: Model) -> Tensor:
        return self.features.images(self._draw(GENERIC, GENERIC_SEEDS, model).flatten(0, 1))

    def _generic_before(self) -> Tensor:
        """The base's own generic pictures: the same for every run, so drawn once."""
        if self._before is None:
            self._before = self._generic(None)
        return self._before

    def _pairs(self, subjects: Sequence[Subject], model: Model, features: dict[str, Tensor]) -> list[Tensor]:
        rows = []
        for (i, one), (j, two) in combinations(enumerate(subjects, 1), 2):
            names = (f"<{subject.concept.name}>" for subject in (one, two))
            rows.append(self._draw([PAIR.format(*names)], PAIR_SEEDS, model)[0])
            features[f"pair/{i}-{j}"] = self.features.images(rows[-1])
            features[f"real_pair/{i}-{j}"] = self.features.images(self._shown(together(one, two, self.base.image_size)))
        return [row[: self.how.glimpses] for row in rows]


def correct(logits_NP: Tensor, number: int) -> float:
    """The share of images whose greatest score is that of concept `number`, counted from 1."""
    return (logits_NP.argmax(1) == number - 1).double().mean().item()
