"""A version that is deleted for good leaves a running replica, weights and all that was computed with them."""

from uuid import uuid4

from services.objects import open_store
from services.retention import Retention
from tests.cp_serve.conftest import Serving
from tests.cp_serve.test_http import PATH, refused
from tests.cp_serve.versions import publish
from tests.house import wait_until


def test_a_deleted_version_draws_nothing_any_more(serving: Serving) -> None:
    lineage, denoiser = f"l{uuid4().hex[:8]}", serving.denoiser
    for adapter in serving.adapters.values():
        publish(serving.registry, lineage, denoiser.base, adapter)
    serving.await_live(lineage, 2)
    body = {"model": f"{lineage}@1", "prompt": "a <fox>", "steps": 1}
    assert serving.client.post(PATH, json=body).status_code == 200
    assert f"{lineage}@1" in {model for model, _ in denoiser._prompts._kept.values()}

    Retention(serving.settings, open_store(serving.settings)).delete(lineage, 1)
    wait_until(lambda: (lineage, 1) not in denoiser.bank._slots)
    wait_until(lambda: f"{lineage}@1" not in {model for model, _ in denoiser._prompts._kept.values()})
    refused(serving.client.post(PATH, json=body), 404, "not_found", "model", "has no version 1")
    assert serving.generate(model=lineage)["model"] == f"{lineage}@2"
