"""The main job, end to end on the real stack: learn, serve, learn again, roll back, go forward."""

import base64
import io
import json

import pytest
import requests
from PIL import Image

from services.manifest import MANIFEST_FILE
from tests.house import PATIENCE, SAMPLES, House, Job

LINEAGE = "story"


@pytest.fixture(scope="module")
def jobs(house: House) -> list[Job]:
    """Two concepts learned one after the other by `ray job submit`, and the picture that version 1 drew meanwhile."""
    return [house.learn(LINEAGE, "robot"), house.learn(LINEAGE, "fox")]


def _drawn(house: House, model: str, prompt: str = "a photo of a <robot>") -> tuple[str, bytes]:
    drawn = house.client.generate(model, prompt, seed=7, steps=4)
    return drawn.model, drawn.pictures[0]


def test_two_concepts_become_a_chain_whose_head_is_live(house: House, jobs: list[Job]) -> None:
    first, second = (job.outcome for job in jobs)
    assert (first["version"], first["parent"], first["live"]) == (1, None, True)
    assert (second["version"], second["parent"], second["live"]) == (2, 1, True)
    assert first["gate"] == second["gate"] == {"passed": True, "reasons": []}
    tree = house.client.lineage(LINEAGE)
    assert (tree["live"], tree["candidate"]) == (2, None)
    assert [version["concepts"] for version in tree["versions"]] == [["robot"], ["robot", "fox"]]


def test_the_outcome_is_the_last_line_of_the_job(house: House, jobs: list[Job]) -> None:
    own = [line for line in jobs[0].log.splitlines() if "sdk.py" not in line and "cli.py" not in line and line.strip()]
    assert json.loads(own[-1]) == jobs[0].outcome


def test_serving_follows_and_draws_both_concepts(house: House, jobs: list[Job]) -> None:
    house.serves(LINEAGE, 2)
    for concept in ("robot", "fox"):
        model, picture = _drawn(house, LINEAGE, f"a photo of a <{concept}>")
        assert model == f"{LINEAGE}@2"
        assert Image.open(io.BytesIO(picture)).size == (64, 64)


def test_a_version_carries_manifest_metrics_and_a_grid_of_all_concepts(house: House, jobs: list[Job]) -> None:
    info = house.registry.version(LINEAGE, 2)
    manifest = house.registry.manifest(LINEAGE, 2)
    assert manifest.digest == info.digest == jobs[1].outcome["digest"]
    assert manifest.provenance.parent_digest == jobs[0].outcome["digest"]
    assert {"denoising_loss", "dc_accuracy", "seconds"} <= manifest.provenance.metrics.keys()
    artifacts = [key for key in house.store.list("mlflow/") if info.run_id in key]
    names = {key.rpartition("/")[2] for key in artifacts}
    files = {"adapter.safetensors", "tokens.safetensors", "training_state.safetensors", MANIFEST_FILE}
    assert names == files | {"concepts.png", "robot.jpg", "fox.jpg", "matrix.csv", "matrix.png"}
    (grid,) = [key for key in artifacts if key.endswith("samples/concepts.png")]
    assert Image.open(io.BytesIO(house.store.get(grid))).size == (4 * 64, 2 * 64)


def test_rolling_back_draws_what_version_1_drew_and_forward_what_version_2_drew(house: House, jobs: list[Job]) -> None:
    before = {number: _drawn(house, f"{LINEAGE}@{number}")[1] for number in (1, 2)}
    assert before[1] != before[2]
    for number in (1, 2):
        house.registry.set_live(LINEAGE, number)
        house.serves(LINEAGE, number)
        assert _drawn(house, LINEAGE) == (f"{LINEAGE}@{number}", before[number])


def test_no_image_of_a_concept_is_left(house: House, jobs: list[Job]) -> None:
    assert list(house.store.list("intake/")) == []
    assert list(house.store.list("training/")) == []
    assert "deleted 6 concept images" in jobs[0].log
    assert len(list((SAMPLES / "robot").glob("*.png"))) == 6


def test_the_same_submission_again_returns_the_same_version(house: House, jobs: list[Job]) -> None:
    again = house.learn(LINEAGE, "fox").outcome
    assert again == jobs[1].outcome
    assert len(house.client.lineage(LINEAGE)["versions"]) == 2


def test_another_concept_of_a_known_name_is_refused(house: House, jobs: list[Job]) -> None:
    error = house.learn(LINEAGE, "fox", "--seed", "1").error
    assert "<fox> was learned in version 2" in error


def test_plain_http_as_in_the_docs(house: House, jobs: list[Job]) -> None:
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
