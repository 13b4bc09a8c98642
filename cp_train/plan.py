"""What a job decided to do, complete and picklable: the driver writes it, the workers carry it out."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from cp_train import prompts
from cp_train.denoise import LoopConfig
from cp_train.fisher import FisherConfig
from cp_train.methods import find_method
from cp_train.methods.dsc import DSCConfig
from cp_train.methods.kv import KVConfig
from services.adapter import Adapter, TrainingState
from services.manifest import MAX_RANK, BaseRef, Concept


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """Everything that decides the outcome apart from the images and the parent.

    Attributes:
        method: name of the method.
        weight: lambda of its penalty, other than kv's.
        rank: of a lineage's first version; later ones have their parent's.
        crops: random crops of each image that are cached beside it; none for a base that draws its subjects whole.
        templates: of the training prompts; `{}` stands for the concept.
        loop, fisher, kv, dsc: see there.
    """

    method: str
    weight: float = 0.0
    rank: int = 16
    crops: int = 0
    templates: tuple[str, ...] = prompts.TEMPLATES
    loop: LoopConfig = field(default_factory=LoopConfig)
    fisher: FisherConfig = field(default_factory=FisherConfig)
    kv: KVConfig = field(default_factory=KVConfig)
    dsc: DSCConfig = field(default_factory=DSCConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank must be from 1 to {MAX_RANK}.")
        if not 0 <= self.weight < math.inf:
            raise ValueError("the method's weight must be at least 0 and finite.")
        if self.crops < 0 or not self.templates or any(t.count("{}") != 1 for t in self.templates):
            raise ValueError("crops must be at least 0, and every template needs one {} for the concept.")

    @classmethod
    def for_method(
        cls, method: str, *, weight: float | None = None, fisher: FisherConfig | None = None, **settings: Any
    ) -> "LearningConfig":
        """Settings, with what the method decides where it is left open. Raises `InputError` for an unknown method."""
        kind = find_method(method)
        chosen = fisher or FisherConfig()
        return cls(
            method=method,
            weight=(kind.default_weight if weight is None else weight) if kind.default_weight is not None else 0.0,
            fisher=replace(chosen, contrast=kind.contrast * chosen.contrast),
            **settings,
        )

    def flat(self) -> dict[str, object]:
        """One level, for MLflow parameters and the manifest; only what the method reads and the outcome depends on."""
        method, parts = find_method(self.method), asdict(self)
        del parts["fisher"]["chunk"]
        unread = {"kv": not method.protects, "dsc": not method.distils}
        nested = {
            f"{part}.{key}": value
            for part in ("loop", "fisher", "kv", "dsc")
            for key, value in parts.pop(part).items()
            if not unread.get(part)
        }
        return {**parts, **nested, "templates": list(self.templates)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """One concept to learn on top of one parent.

    Attributes:
        base: the base's reference, for loading; `base_ref` is what it must turn out to be.
        intake_id: where the images are held.
        parent: the adapter to continue (a fresh one for a lineage's first version), and its Fisher information.
        earlier: the concepts that the parent knows.
        teachers: for DSC, adapters of earlier versions on the branch, each as it was when its last concept was learned.
    """

    lineage: str
    concept: Concept
    base: str
    base_ref: BaseRef
    intake_id: str
    config: LearningConfig
    parent: Adapter
    fisher: TrainingState | None
    earlier: tuple[Concept, ...]
    run_id: str
    teachers: tuple[Adapter, ...] = ()

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """All concepts of the version to be, in the order learned."""
        return (*self.earlier, self.concept)

    def scored_prompts(self, generator: torch.Generator) -> Sequence[str]:
        """One minibatch's prompts for the scores: the concept, c^0, then k earlier ones, all in one template."""
        form = self._form(generator)
        order = torch.randperm(len(self.earlier), generator=generator)[: self.config.fisher.earlier]
        return self._compared(form, [self.earlier[i] for i in order.tolist()])

    def distilled_prompts(self, generator: torch.Generator, earlier: str) -> Sequence[str]:
        """One minibatch's prompts for DSC: the concept, c^0, and the earlier concept of that name."""
        return self._compared(self._form(generator), [concept for concept in self.earlier if concept.name == earlier])

    def protected_prompts(self) -> tuple[list[str], list[str]]:
        """Generic captions, and prompts of the earlier concepts, whose keys and values are to stay."""
        kv, generator = self.config.kv, torch.Generator().manual_seed(self.config.loop.seed)
        return prompts.protected_prompts(self.config.templates, self.earlier, kv.prompts, kv.generic, generator)

    def _form(self, generator: torch.Generator) -> int:
        return int(torch.randint(2 * len(self.config.templates), (), generator=generator))

    def _compared(self, form: int, earlier: Sequence[Concept]) -> list[str]:
        templates = self.config.templates
        current, *others = (prompts.concept_prompts(templates, c)[form] for c in (self.concept, *earlier))
        return [current, prompts.prior_prompts(templates, self.concept)[form], *others]
