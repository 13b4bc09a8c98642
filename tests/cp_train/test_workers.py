"""Two real workers, each a process with DDP over gloo, against one; and what a worker reserves of a cluster."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from cp_train.denoise import LoopConfig
from cp_train.methods.dsc import DSCConfig
from cp_train.methods.kv import KVConfig
from cp_train.phase import Shard
from cp_train.plan import LearningConfig
from cp_train.task import Task
from cp_train.trainer import scaling
from services.base_model import BaseModel, load_base
from services.settings import Settings
from tests.bases import plan_of, some_adapter

SAMPLES = sorted((Path(__file__).parents[2] / "infra" / "samples").glob("*/*.png"))[:3]


def weights_of(base: BaseModel, method: str, shard: Shard) -> dict[str, Tensor]:
    """Weights after both phases of a second concept."""
    loop = LoopConfig(steps=3, batch_size=4, warmup=1)
    config = LearningConfig.for_method(
        method, crops=0, loop=loop, kv=KVConfig(prompts=8), dsc=DSCConfig(steps=2, pool=2)
    )
    plan = plan_of(base, config, earlier=1)
    object.__setattr__(plan, "teachers", (some_adapter(base.layout, {"c0": 1}, seed=1),))
    images = [Image.open(path).convert("RGB") for path in SAMPLES]
    task = Task(plan, base, images, shard=shard, wrap=DistributedDataParallel if shard.world > 1 else lambda m: m)
    task.train(lambda *_: None, None)
    return {name: parameter.detach() for name, parameter in task.student.named_parameters()}


def work(rank: int, world: int, method: str, folder: str, directory: str) -> None:
    """One worker's process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=world)
    found = weights_of(load_base(folder, device="cpu"), method, Shard(rank, world))
    save_file(found, f"{directory}/{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["dsc_ewc_dc_kv", "textual_inversion"])
def test_two_workers_learn_what_one_does(tiny_base: BaseModel, tmp_path: Path, method: str) -> None:
    context = multiprocessing.start_processes(
        work, (2, method, tiny_base.ref.id, str(tmp_path)), nprocs=2, join=False, start_method="spawn"
    )
    assert context is not None
    while not context.join():
        pass
    alone = weights_of(tiny_base, method, Shard())
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("device", "share", "reserved"),
    [("cuda", 1.0, {"GPU": 1.0}), ("cuda", 0.5, {"GPU": 0.5}), ("cpu", 0.5, {"CPU": 1})],
)
def test_what_the_workers_reserve(
    device: str, share: float, reserved: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what Ray counts: with half a card each, a worker and a replica share one."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    config = scaling(Settings.model_validate({"device": device, "worker_gpus": share, "train_workers": 2}))
    workers = [bundle for bundle in config.as_placement_group_factory().bundles if bundle]
    assert workers == [reserved] * 2


def test_without_a_cluster_there_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert scaling(Settings(train_workers=2)).num_workers == 0
