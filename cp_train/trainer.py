"""Ray Train around a task: workers, checkpoints, failures.

On a Ray cluster the task runs in `settings.train_workers` workers that resume from the last checkpoint when one dies;
without a cluster Ray Train runs the same function in this process.
"""

import os
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from safetensors.torch import load_file, save_file

from cp_train.phase import Shard, State
from cp_train.plan import Plan
from cp_train.report import environment, peak_memory
from cp_train.task import Learned, Task
from services.base_model import load_base, pick_device, use_threads
from services.errors import PalimpsestError, RefusedError, UnavailableError
from services.intake import Intake
from services.lineage import Registry
from services.objects import open_store, training_storage
from services.settings import Settings

_STATE = "state.safetensors"
_LOG_EVERY = 10
_GLIMPSES = 5  # of the concept's scores in one training


def on_cluster() -> bool:
    """Whether this process runs as a job of a Ray cluster (or was told to join one)."""
    return "RAY_ADDRESS" in os.environ


def workers(settings: Settings) -> int:
    """How many workers will train: without a cluster, this process alone."""
    return settings.train_workers if on_cluster() else 1


def scaling(settings: Settings) -> ScalingConfig:
    """What Ray Train reserves: without a cluster nothing, for it runs in this process."""
    cuda = pick_device(settings.device).type == "cuda"
    return ScalingConfig(
        num_workers=workers(settings) if on_cluster() else 0,
        use_gpu=cuda,
        resources_per_worker={"GPU": settings.worker_gpus} if cuda else None,
    )


def train(plan: Plan, settings: Settings) -> Learned:
    """Carry out a plan and return what was learned. No worker is left when this returns or raises.

    Raises:
        PalimpsestError: what a worker raised; `UnavailableError` if workers died too often or Ray does not answer.
        KeyboardInterrupt: the job was stopped.
    """
    path, filesystem = training_storage(settings)
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"job": _Job(plan, settings, checkpoints=on_cluster())},
        scaling_config=scaling(settings),
        run_config=RunConfig(
            name=plan.run_id,
            storage_path=f"{path}/{plan.lineage}",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        learned = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise UnavailableError("The Ray cluster does not answer; `palimpsest status` says what runs.") from error
    except SystemExit as error:  # Ray Train's own answer to an interrupt
        raise KeyboardInterrupt from error
    finally:
        ray.shutdown()
    if isinstance(learned, PalimpsestError):
        raise learned
    assert isinstance(learned, Learned)
    return learned


def _cause(error: ray.train.TrainingFailedError) -> PalimpsestError:
    """Our own error out of Ray's wrapping, else a line that names the kind of failure and nothing else."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        for inner in (failure, getattr(failure, "_base_exc", None), getattr(failure, "cause", None)):
            if isinstance(inner, PalimpsestError):
                return inner
    kinds = ", ".join(sorted({type(f).__name__ for f in failures.values()})) or type(error).__name__
    return UnavailableError(f"Training failed on the cluster ({kinds}); `ray job logs` has the trace. Submit it again.")


@dataclass(frozen=True)
class _Job:
    """What a worker is sent. Whether checkpoints make sense only the driver knows: it alone sees RAY_ADDRESS."""

    plan: Plan
    settings: Settings
    checkpoints: bool


def _work(config: dict[str, Any]) -> Learned | PalimpsestError | None:
    """What each Ray Train worker runs; the first one returns what was learned.

    Ray Train would start the workers again after any error. One that would only come again is returned instead, where
    no other worker waits for this one.
    """
    try:
        return _learn(config["job"])
    except (PalimpsestError, ValueError) as error:
        if isinstance(error, UnavailableError) or ray.train.get_context().get_world_size() > 1:
            raise
        if isinstance(error, PalimpsestError):
            return error
        traceback.print_exc()
        return PalimpsestError("Training failed (ValueError); the lines above are its trace.")


def _learn(job: _Job) -> Learned | None:
    plan, settings = job.plan, job.settings
    use_threads(settings.threads)
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    base = load_base(plan.base, device=settings.device)
    if base.ref.revision != plan.base_ref.revision:
        raise RefusedError(
            f"The worker's base {plan.base!r} differs from the driver's; install the same one everywhere."
        )
    images = Intake(open_store(settings), settings).open(plan.intake_id)
    _say(plan, f"learning from {len(images)} images")
    task = Task(plan, base, images, shard=shard, wrap=ray.train.torch.prepare_model if shard.world > 1 else lambda m: m)
    reporter = _Reporter(job, shard, task)
    reporter.tell_environment()
    task.train(reporter, _restored())
    if shard.rank > 0:
        return None
    _say(plan, "weighing what matters (Fisher information), drawing the samples, and judging them")
    learned = task.finish(settings)
    return replace(learned, metrics=learned.metrics | peak_memory())


def _say(plan: Plan, line: str) -> None:
    print(f"<{plan.concept.name}> {line}", flush=True)


def _restored() -> State | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return dict(load_file(Path(directory) / _STATE))


class _Reporter:
    """Called after each step: checkpoints to Ray Train, losses to MLflow, progress to the job's log."""

    def __init__(self, job: _Job, shard: Shard, task: Task) -> None:
        plan, settings, self.checkpoints = job.plan, job.settings, job.checkpoints
        self.task, self.steps, self.every = task, task.steps, settings.checkpoint_steps
        self.first = shard.rank == 0
        self.plan = plan
        self.registry = Registry(settings, open_store(settings))
        self.started, self.begin = time.monotonic(), -1
        self.pending: list[float] = []

    def __call__(self, step: int, loss: float, state: Any) -> None:
        if self.begin < 0:
            self.begin = step - 1
        self.pending.append(loss)
        if self.first and (step % _LOG_EVERY == 0 or step == self.steps):
            self._log(step)
        if self.first and step % max(1, self.steps // _GLIMPSES) == 0:
            self._send(self.task.progress(), step)
        if step % self.every == 0 and step < self.steps and self.checkpoints:
            self._checkpoint(step, state())

    def tell_environment(self) -> None:
        """Tag the run with what learns it: this worker, for the job may be on a machine that has no GPU."""
        if self.first:
            with suppress(UnavailableError):  # an outage of MLflow stops no training
                self.registry.tag_run(self.plan.run_id, environment(self.task.base.device))

    def _log(self, step: int) -> None:
        mean = sum(self.pending) / len(self.pending)
        pace = (time.monotonic() - self.started) / (step - self.begin)
        left = pace * (self.steps - step)
        progress = f"step {step}/{self.steps}  loss {mean:.4f}  {pace * 1e3:.0f} ms/step  ETA {left:.0f} s"
        _say(self.plan, progress)
        if self._send({"loss": mean}, step):  # else it is part of the next mean
            self.pending.clear()

    def _send(self, metrics: dict[str, float], step: int) -> bool:
        """Log a point of each curve; an outage of MLflow stops no training."""
        try:
            self.registry.log_metrics(self.plan.run_id, metrics, step=step)
        except UnavailableError:
            return False
        return True

    def _checkpoint(self, step: int, state: State) -> None:
        with tempfile.TemporaryDirectory() as directory:
            if self.first:
                save_file(state, Path(directory) / _STATE)
            checkpoint = Checkpoint.from_directory(directory) if self.first else None
            ray.train.report({"step": step}, checkpoint=checkpoint)
