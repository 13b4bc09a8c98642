"""The whole house on PostgreSQL and an S3 server, as `palimpsest up --backend postgres-s3` starts it."""

from collections.abc import Iterator

import pytest

from services.seaweedfs import PORTS
from tests.house import House, private_home, started
from tests.ports import free_ports, free_row
from tests.stack import own_servers

LINEAGE = "cloud"


@pytest.fixture
def far_house() -> Iterator[House]:
    (postgres,) = free_ports(1)
    servers = {"backend": "postgres-s3", "postgres_port": postgres, "s3_port": free_row(len(PORTS))}
    with private_home(**servers) as settings, own_servers(settings), started(settings) as house:
        yield house


def test_everything_is_kept_on_servers(far_house: House) -> None:
    settings, store = far_house.settings, far_house.store
    assert settings.store_uri.startswith("s3://")
    assert settings.database_url.startswith("postgresql")
    outcome = far_house.learn(LINEAGE, "robot").outcome
    assert (outcome["version"], outcome["live"]) == (1, True)
    assert far_house.registry.manifest(LINEAGE, 1).digest == outcome["digest"]
    assert list(store.list("intake/")) == list(store.list("training/")) == []
    assert any(key.endswith("samples/concepts.png") for key in store.list("mlflow/"))
    assert not (settings.home / "mlflow.db").exists()
    assert not (settings.home / "store").exists()

    far_house.serves(LINEAGE, 1)
    assert far_house.client.generate(LINEAGE, "a photo of a <robot>", seed=1, steps=2).model == f"{LINEAGE}@1"
    told = far_house.run("palimpsest", "status").stdout.split()
    assert told == [word for name in ("postgres", "s3", "mlflow", "ray", "serve") for word in (name, "up")]
    done = far_house.run("palimpsest", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "postgres answers" in done.stdout
    assert (settings.home / "backend").read_text() == "postgres-s3\n", "later commands know it"
