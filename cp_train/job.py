"""The story of one concept: intake -> train -> consolidate -> evaluate -> publish."""

import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cp_train.denoise import check_shares
from cp_train.methods import find_method, product_method
from cp_train.plan import Plan
from cp_train.prompts import concept_prompts
from cp_train.report import SAMPLES, describe, put_report
from cp_train.request import Outcome, Place, Request
from cp_train.task import Learned
from cp_train.trainer import train, workers
from services.adapter import Adapter, TrainingState, file_refs, new_adapter
from services.base_model import BaseOutline, load_outline
from services.conditioning import tokenize
from services.errors import ConflictError, NotFoundError, PalimpsestError, UnavailableError
from services.images import check_images
from services.intake import Intake, collect
from services.jobs import current_job_id
from services.lease import Lease, lease
from services.lineage import LIVE, Registry, Verdict, VersionInfo
from services.manifest import Concept, Content, Manifest, Provenance, canonical, check_name, check_noun, sha256
from services.objects import checkpoint_folder, open_store
from services.patience import outlast
from services.settings import Settings
from services.versions import TAG

__all__ = ["Outcome", "Request", "learn"]

log = logging.getLogger("palimpsest.job")
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Parent:
    """What a version builds on: the concepts it knows, its weights, its Fisher information, and DSC's teachers."""

    concepts: tuple[Concept, ...]
    adapter: Adapter
    fisher: TrainingState | None
    teachers: tuple[Adapter, ...] = ()


def learn(request: Request, settings: Settings) -> Outcome:
    """Learn one concept and publish the version.

    Raises:
        InputError: a name, noun, image or setting that cannot be accepted.
        ConflictError: the lineage knows a concept of that name already.
        RefusedError: the lineage belongs to another base.
        UnavailableError: MLflow, the store or Ray does not answer.
    """
    place = Place(request.lineage, request.place, settings)
    with place.given_up_on_failure():
        job = Job(request, settings)
        with job.held_images() as intake_id:
            with job.writer(place.take()) as writer:
                outcome = job.learn(intake_id, writer)
            job.let_go(intake_id, outcome)
    return outcome


class Job:
    """One request at work. Raises `InputError` at once for what can be refused before any work."""

    def __init__(self, request: Request, settings: Settings) -> None:
        check_name(request.lineage, "lineage")
        check_name(request.concept, "concept")
        product_method(request.config.method)
        check_shares(request.config.loop, workers(settings))
        self.request, self.settings = request, settings
        self.concept = Concept(name=request.concept, noun=check_noun(request.noun))
        self.base: BaseOutline = load_outline(request.base)
        for prompt in concept_prompts(request.config.templates, self.concept):
            tokenize(self.base, prompt, {self.concept.name: self.concept.vectors}, param="noun")
        self.store = open_store(settings)
        self.registry = Registry(settings, self.store)
        self.intake = Intake(self.store, settings)

    @contextmanager
    def held_images(self) -> Iterator[str]:
        """The intake id of the concept's images, held for as long as the job needs them.

        If the job fails, copies made here are deleted, and images handed in by id stay until their time-to-live, so
        that the job can be submitted again.
        """
        self.intake.expire(time.time())
        images, ours = self.request.images, not self.request.images.startswith("in-")
        if ours:
            images = self.intake.hold(check_images(collect(images, self.settings), self.settings))
        try:
            yield images
        except BaseException:
            if ours:
                with suppress(PalimpsestError):  # the time-to-live does it then; the first error is the one to tell
                    self.intake.release(images)
            raise

    def let_go(self, intake_id: str, outcome: Outcome) -> None:
        """Delete the images, unless the gate refused the version: then other settings can be tried on them.

        A refused submission that comes again brings the same images again: those stay that the version was made from.
        """
        if not outcome.gate.passed and self.registry.version(outcome.lineage, outcome.version).intake == intake_id:
            days = self.settings.intake_ttl_days
            how = f"python -m cp_train --images {intake_id}"
            log.warning("the images stay for %g days: learn them with other settings by %s", days, how)
            return
        with _published("the concept images are left to their time-to-live"):
            log.info("deleted %d concept images from the intake store", self.intake.release(intake_id))

    @contextmanager
    def writer(self, place: int | None) -> Iterator[Lease]:
        """The lineage's one writer; others wait their turn. `place` is one's own in the queue, if there is one."""
        with lease(
            self.store,
            self.request.lineage,
            ttl=self.settings.lease_seconds,
            holder=f"{socket.gethostname()}:{os.getpid()}",
            on_wait=self._say_waiting,
            place=place,
        ) as held:
            yield held

    def _say_waiting(self, line: str) -> None:
        log.info("waiting for lineage %s, which learns one concept at a time: %s", self.request.lineage, line)

    def learn(self, intake_id: str, writer: Lease) -> Outcome:
        """Learn on top of the live version, or find that this was done already; then promote."""
        self.store.delete_prefix(checkpoint_folder(self.request.lineage))  # of a writer that was killed
        live = self._live()
        images = self._images(intake_id)
        version = self._learned_before(images, live)
        if version is None:
            self.intake.digest(intake_id)  # other settings on images that are gone already cannot be learned
            version = self._learn_new(intake_id, images, live, writer)

        def promote() -> Outcome:
            writer.check()
            return self._promote(version)

        return self._outlast(promote)

    def _images(self, intake_id: str) -> str:
        """Digest of the images; of those that are gone since their version is published, as its tags have it."""
        try:
            return self.intake.digest(intake_id)
        except NotFoundError:
            done = self.registry.find_intake(self.request.lineage, intake_id)
            if done is None or not done.images:
                raise
            return done.images

    def _live(self) -> VersionInfo | None:
        """The version to build on; None in a new lineage."""
        lineage = self.request.lineage
        try:
            number = self.registry.aliases(lineage).get(LIVE)
        except NotFoundError:
            return None
        self.registry.check_base(lineage, self.base.ref)
        if number is not None:
            return self.registry.version(lineage, number)
        if not self.registry.may_begin(lineage):
            raise ConflictError(f"No version of {lineage} is live any more; promote one to build on.", param="lineage")
        return None

    def _submission(self, images: str, parent: int | None) -> str:
        """What makes two submissions the same: content, settings and parent."""
        request = self.request
        return sha256(
            canonical(
                {
                    "lineage": request.lineage,
                    "parent": parent,
                    "concept": self.concept.model_dump(),
                    "images": images,
                    "base": self.base.ref.revision,
                    "config": request.config.flat(),
                }
            )
        )

    def _learned_before(self, images: str, live: VersionInfo | None) -> VersionInfo | None:
        """The version that this submission made before, on the live version or among its ancestors.

        Raises:
            ConflictError: the live version knows another concept of that name.
        """
        lineage, name = self.request.lineage, self.concept.name
        if live is None or name not in live.concepts:
            if self.request.again:
                return None
            return self.registry.find_submission(lineage, self._submission(images, live.number if live else None))
        first = self._introduced(live)
        same = self.registry.find_submission(lineage, self._submission(images, first.parent))
        if same is None or self.request.again:
            before = "an earlier branch" if first.parent is None else f"version {first.parent}"
            raise ConflictError(
                f"<{name}> was learned in version {first.number} of {lineage}: choose another name, or roll back to "
                f"{before} to learn it anew.",
                param="concept",
            )
        return same

    def _introduced(self, version: VersionInfo) -> VersionInfo:
        """The ancestor that first knew the concept."""
        while version.parent is not None:
            parent = self.registry.version(version.lineage, version.parent)
            if self.concept.name not in parent.concepts:
                return version
            version = parent
        return version

    def _learn_new(self, intake_id: str, images: str, live: VersionInfo | None, writer: Lease) -> VersionInfo:
        request, started = self.request, time.monotonic()
        submission = self._submission(images, live.number if live else None)
        if request.again:
            submission = f"{submission}:{uuid.uuid4().hex}"
        parent = self._parent(live)
        with self._run() as run_id:
            plan = self._plan(intake_id, parent, run_id)
            learned = train(plan, self.settings)
            seconds = time.monotonic() - started
            metrics = {"seconds": seconds, "gate_passed": float(learned.verdict.passed), **learned.metrics}
            manifest = self._manifest(plan, live, learned, metrics)

            def publish() -> VersionInfo:
                """May be repeated: nothing shows before the registration, which is found again by its submission."""
                self.registry.log_metrics(run_id, metrics)
                report = put_report(self.registry, run_id, manifest, live, learned.grid)
                version = self.registry.publish(
                    request.lineage,
                    run_id,
                    manifest,
                    learned.files,
                    submission=submission,
                    intake=intake_id,
                    images=images,
                    pictures=SAMPLES if learned.grid else "",
                    verdict=learned.verdict,
                    job=current_job_id(),
                    actor=request.actor,
                    check=writer.check,
                )
                describe(self.registry, version, report)
                return version

            return self._outlast(publish)

    def _outlast(self, work: Callable[[], _T]) -> _T:
        """Wait out an outage: what was learned is not lost for want of a registry."""
        return outlast(work, seconds=self.settings.outage_seconds, say=log.warning)

    def _parent(self, live: VersionInfo | None) -> Parent:
        """Weights and memory of the version to build on; fresh ones in a new lineage."""
        layout, base = self.base.layout, self.base.ref
        if live is None:
            config = self.request.config
            return Parent((), new_adapter(layout, rank=config.rank, seed=config.loop.seed), None)
        manifest, adapter = self.registry.fetch(live.lineage, live.number, layout=layout, base=base)
        fisher = self.registry.fetch_state(live.lineage, live.number, layout=layout, base=base)
        if adapter.rank != self.request.config.rank:
            log.warning("rank %d is ignored: %s has rank %d", self.request.config.rank, live.lineage, adapter.rank)
        teachers = self._teachers(live) if find_method(self.request.config.method).distils else ()
        return Parent(manifest.content.concepts, adapter, fisher, teachers)

    def _teachers(self, live: VersionInfo) -> tuple[Adapter, ...]:
        """Adapters of the versions on the branch, as many as DSC can ask, drawn at random."""
        config = self.request.config
        known = {version.number: version for version in self.registry.versions(live.lineage)}
        branch, number = [], live.number
        while number in known:
            branch.append(number)
            number = known[number].parent or 0
        drawn = random.Random(config.loop.seed).sample(branch, min(len(branch), config.dsc.pool))  # noqa: S311
        layout, base = self.base.layout, self.base.ref
        return tuple(self.registry.fetch(live.lineage, n, layout=layout, base=base)[1] for n in drawn)

    @contextmanager
    def _run(self) -> Iterator[str]:
        """An MLflow run that ends as what happened."""
        request = self.request
        params = request.config.flat() | {"concept": request.concept, "noun": request.noun, "base": request.base}
        tags = {f"{TAG}job": current_job_id()}
        run_id = self.registry.create_run(request.lineage, name=request.concept, params=params, tags=tags)
        try:
            yield run_id
        except BaseException as error:
            log.error("run %s failed: %s", run_id, type(error).__name__)
            with suppress(UnavailableError):
                self.registry.end_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            with suppress(PalimpsestError):  # the lineage's next job does it then
                self.store.delete_prefix(checkpoint_folder(request.lineage, run_id))
        with _published("its run stays open in MLflow"):
            self.registry.end_run(run_id)

    def _plan(self, intake_id: str, parent: Parent, run_id: str) -> Plan:
        request = self.request
        return Plan(
            lineage=request.lineage,
            concept=self.concept,
            base=request.base,
            base_ref=self.base.ref,
            intake_id=intake_id,
            config=request.config,
            parent=parent.adapter,
            fisher=parent.fisher,
            earlier=parent.concepts,
            run_id=run_id,
            teachers=parent.teachers,
        )

    def _manifest(self, plan: Plan, live: VersionInfo | None, learned: Learned, metrics: dict[str, float]) -> Manifest:
        content = Content(
            lineage=plan.lineage,
            base=plan.base_ref,
            rank=plan.parent.rank,
            alpha=plan.parent.alpha,
            concepts=plan.concepts,
            files=file_refs(learned.files),
        )
        provenance = Provenance(
            parent=live.number if live else None,
            parent_digest=live.digest if live else None,
            method=plan.config.method,
            settings=plan.config.flat(),
            metrics=metrics,
            run_id=plan.run_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Manifest(digest=content.digest, content=content, provenance=provenance)

    def _promote(self, version: VersionInfo) -> Outcome:
        """Make a version that passed the gate live, if its parent still is."""
        lineage = self.request.lineage
        actor = self.request.actor
        promote = self.registry.promote
        live = version.gate_passed and promote(lineage, version.number, expected=version.parent, actor=actor)
        if version.gate_passed and not live and not version.promoted:
            log.warning("version %d stays a candidate: its parent is not live any more", version.number)
        return Outcome(
            lineage=lineage,
            version=version.number,
            parent=version.parent,
            run_id=version.run_id,
            digest=version.digest,
            gate=Verdict(version.gate_passed, version.gate_reasons),
            live=live,
        )


@contextmanager
def _published(otherwise: str) -> Iterator[None]:
    """Cleaning up after the version is out: an outage is logged, for what was published stays published."""
    try:
        yield
    except UnavailableError as error:
        log.warning("%s: %s", otherwise, error.message)
