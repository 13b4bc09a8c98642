"""The job with everything it keeps on a real S3 server: intake, lease, checkpoints, artifacts."""

import json
import os

from services.lineage import Registry
from services.objects import open_store
from services.settings import Settings
from tests.house import House, finished, learning


def test_a_job_keeps_everything_on_s3(house: House, mlflow_server_on_s3: Settings) -> None:
    there = mlflow_server_on_s3
    variables = {
        "PALIMPSEST_STORE": there.store,
        "PALIMPSEST_S3_ENDPOINT": there.s3_endpoint,
        "PALIMPSEST_MLFLOW_URI": there.mlflow,
        **{name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
    }
    environment = json.dumps({"env_vars": variables})
    job = finished(house.start_job(*learning("cloud", "robot"), options=("--runtime-env-json", environment)))
    outcome = job.outcome
    assert (outcome["version"], outcome["live"]) == (1, True)

    store = open_store(there)
    assert Registry(there, store).manifest("cloud", 1).digest == outcome["digest"]
    assert list(store.list("intake/")) == list(store.list("training/")) == []
    assert any(key.endswith("samples/concepts.png") for key in store.list("mlflow/"))
    assert "cloud" not in house.registry.lineages()
