"""One worker's whole work on one concept: cache, train, consolidate, draw."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from cp_train.data import cached_latents
from cp_train.denoise import Denoising, Pictures
from cp_train.evaluation.draw import grid
from cp_train.evaluation.evidence import Examination, draw_concepts
from cp_train.evaluation.features import gate_features
from cp_train.evaluation.gate import Limits, judge, unsound
from cp_train.evaluation.metrics import dc_accuracy, dc_score, denoising_loss
from cp_train.fisher import accumulate, fisher_information
from cp_train.loop import Loop, StepHook
from cp_train.methods import Memory, Method, find_method
from cp_train.methods.dsc import Distillation
from cp_train.methods.kv import protect
from cp_train.phase import Phase, Shard, State
from cp_train.plan import Plan
from cp_train.prompts import concept_prompts
from services import adapter as adapter_files
from services.adapter import Adapter, TrainingState
from services.base_model import BaseModel
from services.conditioning import TokenizedPrompt
from services.errors import InputError
from services.lineage import Verdict
from services.manifest import Concept
from services.settings import Settings

SAMPLE_SEEDS = (0, 1, 2, 3)
FISHER_SEED = 1_000_000_007


@dataclass(frozen=True)
class Learned:
    """What came out: the version's tensor files, the gate's verdict, and figures for MLflow.

    `grid` has samples of every concept, a PNG; it is empty where samples are not wanted.
    """

    files: dict[str, bytes]
    grid: bytes
    verdict: Verdict
    metrics: dict[str, float]


class Task:
    """A plan at work on one worker.

    Args:
        plan: what to learn.
        base: the base that the plan names.
        images: the concept's images.
        shard: this worker's part of every batch.
        wrap: puts DDP around the student where there are several workers.
        replay: earlier concepts and their images, for a method that needs them (`joint`).
    """

    def __init__(
        self,
        plan: Plan,
        base: BaseModel,
        images: list[Image.Image],
        *,
        shard: Shard,
        wrap: Callable[[nn.Module], nn.Module],
        replay: Sequence[tuple[Concept, list[Image.Image]]] = (),
    ) -> None:
        self.plan, self.base, self.images, self.shard = plan, base, len(images), shard
        self.latents_NCHW = self._latents(images)
        self.parent = plan.parent.to(base.device)
        self.fisher = plan.fisher.to(base.device) if plan.fisher else None
        kind = find_method(plan.config.method)
        concepts = (*(concept for concept, _ in replay), plan.concept)
        seed = plan.config.loop.seed
        self.student = kind.student(base, self.parent, *concepts, seed=seed).to(base.device)
        self.model = wrap(self.student)
        pictures = self._pictures(concepts, [self._latents(shown) for _, shown in replay])
        self.loop = Loop(self.student, self._method(kind), self._phases(kind, pictures))

    def _latents(self, images: list[Image.Image]) -> Tensor:
        config = self.plan.config
        return cached_latents(self.base, images, crops=config.crops, seed=config.loop.seed)

    def _pictures(self, concepts: Sequence[Concept], replayed: Sequence[Tensor]) -> Pictures:
        latents = [*replayed, self.latents_NCHW]
        counts = torch.tensor([len(chunk) for chunk in latents])
        prompts = [concept_prompts(self.plan.config.templates, concept) for concept in concepts]
        return Pictures(torch.cat(latents), torch.arange(len(latents)).repeat_interleave(counts), prompts)

    def _method(self, kind: type[Method]) -> Method:
        config = self.plan.config
        protected = self.protect() if kind.protects else None
        memory = Memory(self.parent, self.fisher, protected)
        return kind(memory, weight=config.weight, kv_weight=config.kv.weight, kv_ridge=config.kv.ridge)

    def protect(self) -> Tensor:
        """Second moments of the protected prompts: each earlier concept counts as much as all captions together."""
        captions, own = (self._fitting(prompts) for prompts in self.plan.protected_prompts())
        moments_PDD = protect(self.base, captions, self.parent)
        if own:
            moments_PDD += len(self.plan.earlier) * protect(self.base, own, self.parent)
        return moments_PDD

    def _fitting(self, prompts: Sequence[str]) -> list[TokenizedPrompt]:
        """Tokenized, but for those that are too long for the text encoder."""
        found: list[TokenizedPrompt] = []
        for prompt in prompts:
            with suppress(InputError):
                found += self.student.tokenize([prompt])
        return found

    def _phases(self, kind: type[Method], pictures: Pictures) -> list[Phase]:
        plan, config, teachers = self.plan, self.plan.config, self.plan.teachers if kind.distils else ()
        training = Denoising(self.student, self.model, pictures, config.loop, self.shard, token_only=kind.token_only)
        if not teachers:
            return [training]
        consolidation = Distillation(
            self.student,
            self.model,
            shard=self.shard,
            latents_NCHW=self.latents_NCHW,
            teachers=[teacher.to(self.base.device) for teacher in teachers],
            prompts=plan.distilled_prompts,
            config=config.dsc,
            batch_size=config.loop.batch_size,
            tau=config.fisher.tau,
            seed=config.loop.seed,
            precision=config.loop.precision,
        )
        return [training, consolidation]

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return self.loop.steps

    def train(self, hook: StepHook, start: State | None) -> None:
        """Run every phase to its end, from a checkpoint where there is one."""
        if start is not None:
            self.loop.restore(start)
        self.loop.run(hook)

    def trained(self) -> list[nn.Parameter]:
        """What the training steps change."""
        token_only = find_method(self.plan.config.method).token_only
        return [*(() if token_only else self.student.weights), self.student.token]

    def adapter(self) -> Adapter:
        """What was learned so far."""
        return self.student.adapter()

    def fisher_information(self) -> TrainingState:
        """The plan's Fisher information and this task's, accumulated."""
        config = self.plan.config
        new = fisher_information(
            self.student,
            self.latents_NCHW,
            self.plan.scored_prompts,
            config.fisher,
            seed=config.loop.seed + FISHER_SEED,
        )
        return accumulate(self.fisher, new, gamma=config.fisher.gamma)

    def progress(self) -> dict[str, float]:
        """How surely the new concept is told apart by now, for a curve; it costs about as much as one step."""
        prompts = self.plan.scored_prompts(torch.Generator().manual_seed(0))[:3]
        tau = self.plan.config.fisher.tau
        return {"dc_score": dc_score(self.base, self.adapter(), self.latents_NCHW[: self.images], prompts, tau=tau)}

    def finish(self, settings: Settings) -> Learned:
        """Weigh what matters (Fisher information), draw, judge."""
        return self.judged(self.adapter(), self.fisher_information(), settings)

    def judged(self, adapter: Adapter, fisher: TrainingState, settings: Settings) -> Learned:
        """What the gate says of an adapter that is to follow the parent.

        It looks at the new concept and at a few earlier ones, however many there are; samples show all of them.
        """
        concept, examination = self.plan.concept, self._examination(adapter, settings.gate_features)
        looked_at = [*examination.judged, concept]
        shown = self.plan.concepts if settings.samples else looked_at
        pictures = draw_concepts(self.base, adapter, shown, SAMPLE_SEEDS)
        samples = grid(torch.stack([*pictures.values()])) if settings.samples else b""
        files = adapter_files.encode(adapter, fisher, self.base.layout)
        reasons = unsound(adapter, fisher, {c.name: pictures[c.name] for c in looked_at}, examination.before)
        if reasons:
            return Learned(files, samples, Verdict(False, tuple(reasons)), {})
        evidence = examination.evidence(pictures)
        verdict = judge(evidence, Limits.of(settings), concept.name)
        return Learned(files, samples, verdict, self._metrics(adapter) | evidence.metrics())

    def _examination(self, adapter: Adapter, features: str) -> Examination:
        """Of an adapter, by the gate."""
        return Examination(
            base=self.base,
            features=gate_features(features, self.base),
            parent=self.parent,
            candidate=adapter,
            earlier=self.plan.earlier,
            concept=self.plan.concept,
            latents_NCHW=self.latents_NCHW[: self.images],
            seeds=SAMPLE_SEEDS,
            tau=self.plan.config.fisher.tau,
        )

    def _metrics(self, adapter: Adapter) -> dict[str, float]:
        """How well the new concept is drawn and told apart, on its own images without their crops."""
        images_NCHW = self.latents_NCHW[: self.images]
        prompts = self.plan.scored_prompts(torch.Generator().manual_seed(0))
        return {
            "denoising_loss": denoising_loss(self.base, adapter, images_NCHW, prompts[0]),
            "dc_accuracy": dc_accuracy(self.base, adapter, images_NCHW, prompts, tau=self.plan.config.fisher.tau),
        }
