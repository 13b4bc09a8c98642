"""How many replicas the settings ask Serve for, and a start while the store is away."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from cp_serve.app import application, open_house, scaling
from cp_serve.scaling import IMAGES
from services.errors import UnavailableError
from services.objects import DirectoryStore
from services.settings import Settings


@pytest.mark.parametrize("most", [0, 1, 3])
def test_without_room_to_grow_the_number_is_fixed(most: int) -> None:
    assert scaling(Settings(replicas=3, max_replicas=most)) == {"num_replicas": 3}


def test_with_room_it_follows_the_load() -> None:
    config = scaling(Settings(replicas=2, max_replicas=5, max_batch=12, downscale_seconds=60))["autoscaling_config"]
    assert isinstance(config, AutoscalingConfig)
    assert (config.min_replicas, config.max_replicas) == (2, 5)
    assert config.target_ongoing_requests == 12
    assert config.downscale_delay_s == 60
    assert config.upscale_delay_s < 10, "the queue must not be full before anything happens"


@pytest.mark.parametrize(
    ("held", "requests", "wanted"),
    [({}, 0, 0), ({"a": 16.0}, 2, 2), ({"a": 20.0, "b": 4.0}, 5, 3), ({"a": 4.0}, 24, 3)],
)
def test_a_few_requests_for_many_images_are_much_load(held: dict[str, float], requests: float, wanted: float) -> None:
    config = scaling(Settings(replicas=1, max_replicas=5, max_batch=8))["autoscaling_config"]
    metrics = {IMAGES: held} if held else {}
    context = SimpleNamespace(aggregated_metrics=metrics, total_num_requests=requests, config=config)
    assert config.policy.get_policy()(context)[0] == wanted


@pytest.mark.parametrize("settings", [Settings(), Settings(max_replicas=4)])
def test_a_replica_that_is_let_go_may_finish(settings: Settings) -> None:
    graph = application(settings)
    for part in (graph, graph._bound_deployment.init_args[1]):
        config = part._bound_deployment._deployment_config
        assert config.graceful_shutdown_timeout_s > settings.deadline_seconds


class Away(DirectoryStore):
    """A store that does not answer the first few times."""

    outages = 5

    def exists(self, key: str) -> bool:
        self.outages -= 1
        if self.outages >= 0:
            raise UnavailableError("The store is away.")
        return super().exists(key)


def test_a_first_start_waits_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve would give up after three failures, for good."""
    monkeypatch.setattr("services.patience._LONGEST", 0.0)
    monkeypatch.setattr("services.patience._FIRST", 0.0)
    monkeypatch.setattr("cp_serve.app.open_store", lambda _: Away(tmp_path))
    house = open_house(Settings(home=tmp_path), None)
    assert house.signer.sign("links", "a") == open_house(Settings(home=tmp_path), None).signer.sign("links", "a")
