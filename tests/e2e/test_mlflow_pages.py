"""A person rolls back in MLflow's own pages, with a real browser; serving follows, and learning goes on from there.

The screenshots are left in `PALIMPSEST_SCREENSHOTS`, where it is set, to be looked at.
"""

import os
from pathlib import Path

import pytest

from services.base_model import BaseModel
from tests.browser import ModelPages, browsing
from tests.cp_serve.versions import adapter_of, publish
from tests.house import House

LINEAGE = "pages"


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PALIMPSEST_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _drawn(house: House, model: str = LINEAGE) -> tuple[str, bytes]:
    drawn = house.client.generate(model, "a <fox>", seed=7, steps=4)
    return drawn.model, drawn.pictures[0]


def test_rolling_back_in_the_browser_is_followed_to_the_pixel_and_learned_on(
    house: House, embedded_base: BaseModel, shots: Path
) -> None:
    assert house.learn(LINEAGE, "fox").outcome["version"] == 1
    publish(house.registry, LINEAGE, embedded_base, adapter_of(embedded_base, {"fox": 1}))
    house.serves(LINEAGE, 2)
    before = {number: _drawn(house, f"{LINEAGE}@{number}")[1] for number in (1, 2)}
    assert before[1] != before[2]
    assert _drawn(house) == (f"{LINEAGE}@2", before[2])

    with browsing() as page:
        pages = ModelPages(page, house.settings.mlflow, LINEAGE, shots)
        pages.open_model()
        page.get_by_text("Each version grew from its parent").wait_for()
        pages.shoot("model-with-live-at-2")
        pages.open_version(1)
        page.get_by_text("Description").first.wait_for()
        pages.give_alias("live")
        page.get_by_text("@ live").first.wait_for()
        pages.shoot("version-1-is-live")

    house.serves(LINEAGE, 1)
    assert _drawn(house) == (f"{LINEAGE}@1", before[1]), "what it drew before, to the pixel"
    last = house.registry.history(LINEAGE)[-1]
    assert (last.alias, last.before, last.after, last.via) == ("live", 2, 1, "found")

    with browsing() as page:
        pages = ModelPages(page, house.settings.mlflow, LINEAGE, shots)
        pages.open_model()
        page.get_by_text("live is version 1").wait_for()
        pages.shoot("model-with-live-at-1")

    outcome = house.learn(LINEAGE, "robot").outcome
    assert (outcome["version"], outcome["parent"], outcome["live"]) == (3, 1, True), outcome["gate"]
    with browsing() as page:
        pages = ModelPages(page, house.settings.mlflow, LINEAGE, shots)
        pages.open_version(3)
        pages.await_picture("concepts.png")
        pages.shoot("version-3-grew-from-1")
        run = house.registry._run(str(outcome["run_id"]))
        pages.open_run(run.info.experiment_id, run.info.run_id)
        pages.await_picture("matrix.png")
        pages.await_picture("over-versions")
        page.get_by_text("Show more").first.click()
        page.get_by_text("What is still known").first.scroll_into_view_if_needed()
        pages.shoot("run-of-version-3")
