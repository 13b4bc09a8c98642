"""The main job, end to end on the real stack: `make demo` learns, serves, learns again, rolls back, goes forward."""

import base64
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import torch
from PIL import Image

from cp_train.report import environment
from infra.local.demo import LINEAGE, SEEDS, Demo, summary
from services.manifest import MANIFEST_FILE
from services.objects import open_store
from services.runs import Server
from services.settings import Settings
from tests.house import PATIENCE, QUICK, SAMPLES, House


class Told:
    """A demo that was run: its folder, what it printed, and the last lines of its two jobs."""

    def __init__(self, settings: Settings, output: Path) -> None:
        self.held = set(open_store(settings).list("intake/"))
        self.demo, self.output, printed = Demo(settings, output, QUICK), output, io.StringIO()
        with redirect_stdout(printed):
            self.demo.run()
        self.printed = printed.getvalue()
        self.outcomes = [json.loads(line) for line in self.printed.splitlines() if line.startswith('{"lineage"')]


@pytest.fixture(scope="module")
def told(house: House, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Two concepts learned one after the other by `ray job submit`, drawn, and rolled back."""
    return Told(house.settings, tmp_path_factory.mktemp("demo-output"))


def _drawn(house: House, model: str, prompt: str = "a photo of a <robot>") -> tuple[str, bytes]:
    drawn = house.client.generate(model, prompt, seed=7, steps=4)
    return drawn.model, drawn.pictures[0]


def _pixels(picture: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(picture)), np.int16)


def test_two_concepts_become_a_chain_whose_head_is_live(house: House, told: Told) -> None:
    first, second = told.outcomes
    assert (first["version"], first["parent"], first["live"]) == (1, None, True)
    assert (second["version"], second["parent"], second["live"]) == (2, 1, True)
    assert first["gate"] == second["gate"] == {"passed": True, "reasons": []}
    tree = house.client.lineage(LINEAGE)
    assert (tree["live"], tree["candidate"]) == (2, None)
    assert [version["concepts"] for version in tree["versions"]] == [["robot"], ["robot", "fox"]]


def test_the_demo_leaves_pictures_and_a_summary(house: House, told: Told) -> None:
    shown = {"robot-by-version-2", "fox-by-version-2", "robot-rolled-back", "robot-forward-again"}
    names = {f"{name}-seed-{seed}.png" for name in shown for seed in range(SEEDS)}
    assert {path.name for path in told.output.iterdir()} == names
    for number, what in ((1, "rolled-back"), (2, "forward-again"), (2, "by-version-2")):
        (drawn,) = house.client.generate(f"{LINEAGE}@{number}", "a photo of a <robot>", seed=0).pictures
        kept = (told.output / f"robot-{what}-seed-0.png").read_bytes()
        assert np.abs(_pixels(drawn) - _pixels(kept)).max() <= 2  # drawn in the company of three others
    assert "<robot> step 24/24" in told.printed
    page = summary(told.demo, 7)
    for said in (
        "| learn <fox> |",
        "rose by at most 7 MiB",
        house.settings.mlflow,
        f"{house.settings.api}/docs",
        f"--lineage {LINEAGE}`",
    ):
        assert said in page


def test_serving_follows_and_draws_both_concepts(house: House, told: Told) -> None:
    house.serves(LINEAGE, 2)
    for concept in ("robot", "fox"):
        model, picture = _drawn(house, LINEAGE, f"a photo of a <{concept}>")
        assert model == f"{LINEAGE}@2"
        assert Image.open(io.BytesIO(picture)).size == (64, 64)


def test_a_version_carries_manifest_metrics_and_a_grid_of_all_concepts(house: House, told: Told) -> None:
    info = house.registry.version(LINEAGE, 2)
    manifest = house.registry.manifest(LINEAGE, 2)
    assert manifest.digest == info.digest == told.outcomes[1]["digest"]
    assert manifest.provenance.parent_digest == told.outcomes[0]["digest"]
    assert {"denoising_loss", "dc_accuracy", "seconds"} <= manifest.provenance.metrics.keys()
    artifacts = [key for key in house.store.list("mlflow/") if info.run_id in key]
    names = {key.rpartition("/")[2] for key in artifacts}
    files = {"adapter.safetensors", "tokens.safetensors", "training_state.safetensors", MANIFEST_FILE}
    assert names == files | {"concepts.png", "robot.jpg", "fox.jpg", "matrix.csv", "matrix.png"}
    (grid,) = [key for key in artifacts if key.endswith("samples/concepts.png")]
    assert Image.open(io.BytesIO(house.store.get(grid))).size == (4 * 64, 2 * 64)


def test_the_run_of_a_training_has_its_curves_its_memory_and_its_machine(house: House, told: Told) -> None:
    """As the worker that learned told them."""
    for outcome in told.outcomes:
        run_id = str(outcome["run_id"])
        client = Server(house.settings.mlflow).client
        found = client.get_run(run_id).data
        losses = client.get_metric_history(run_id, "loss")
        assert [point.step for point in losses] == [10, 20, 24]
        assert all(0 < point.value < 2 for point in losses)
        scores = client.get_metric_history(run_id, "dc_score")
        assert [point.step for point in scores] == [4, 8, 12, 16, 20, 24]
        assert all(0 <= point.value <= 1 for point in scores)
        manifest = house.registry.manifest(LINEAGE, outcome["version"])
        measured = {name: value for name, value in found.metrics.items() if name not in {"loss", "dc_score"}}
        assert measured == pytest.approx(manifest.provenance.metrics)
        assert 100 < measured["memory_mib"] < psutil.virtual_memory().total / 2**20
        assert "gpu_memory_mib" not in measured
        assert measured["gate_passed"] == 1
        assert {name: found.tags[name] for name in environment(torch.device("cpu"))} == environment(torch.device("cpu"))
        assert found.tags["palimpsest.job"].startswith("raysubmit_")


def test_rolling_back_draws_what_version_1_drew_and_forward_what_version_2_drew(house: House, told: Told) -> None:
    before = {number: _drawn(house, f"{LINEAGE}@{number}")[1] for number in (1, 2)}
    assert before[1] != before[2]
    for number in (1, 2):
        house.registry.set_live(LINEAGE, number)
        house.serves(LINEAGE, number)
        assert _drawn(house, LINEAGE) == (f"{LINEAGE}@{number}", before[number])


def test_no_image_of_a_concept_is_left(house: House, told: Told) -> None:
    assert set(house.store.list("intake/")) <= told.held, "others' refused versions keep theirs"
    assert list(house.store.list("training/")) == []
    assert told.printed.count("deleted 6 concept images") == 2
    assert len(list((SAMPLES / "robot").glob("*.png"))) == 6


def test_the_same_submission_again_returns_the_same_version(house: House, told: Told) -> None:
    again = house.learn(LINEAGE, "fox")
    assert again.outcome == told.outcomes[1]
    own = [line for line in again.log.splitlines() if "sdk.py" not in line and "cli.py" not in line and line.strip()]
    assert json.loads(own[-1]) == again.outcome, "the last line of the job's own"
    assert len(house.client.lineage(LINEAGE)["versions"]) == 2


def test_another_concept_of_a_known_name_is_refused(house: House, told: Told) -> None:
    error = house.learn(LINEAGE, "fox", "--seed", "1").error
    assert "<fox> was learned in version 2" in error


def test_plain_http_as_in_the_docs(house: House, told: Told) -> None:
    body = {"model": f"{LINEAGE}@1", "prompt": "a <fox>", "steps": 2}
    answer = requests.post(f"{house.settings.api}/v1/images/generations", json=body, timeout=PATIENCE)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "prompt"
    assert "<fox> is not a concept of this version" in answer.json()["error"]["message"]
    body = {"model": LINEAGE, "prompt": "a <fox>", "steps": 2, "n": 2}
    answer = requests.post(f"{house.settings.api}/v1/images/generations", json=body, timeout=PATIENCE)
    assert answer.status_code == 200
    assert [Image.open(io.BytesIO(base64.b64decode(d["b64_json"]))).format for d in answer.json()["data"]] == [
        "PNG"
    ] * 2
