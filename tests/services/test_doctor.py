"""What the doctor finds, on a real installation with real faults."""

import json
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest

from services.doctor import Doctor, Finding
from services.lineage import LIVE, Verdict
from services.objects import DirectoryStore, ObjectStore, open_store
from services.retention import Retention
from services.settings import Settings
from tests.lineages import BASE, OTHER_BASE, Mlflow, folder, publish
from tests.ports import free_ports


@pytest.fixture
def settings(stack_settings: Settings) -> Settings:
    """The running installation, with a lease that lapses soon; what `up` starts besides MLflow does not run."""
    http, ray, dashboard = free_ports(3)
    changes = {"lease_seconds": 0.4, "http_port": http, "ray_port": ray, "dashboard_port": dashboard}
    return stack_settings.model_copy(update=changes)


@pytest.fixture
def keeper(settings: Settings) -> Retention:
    return Retention(settings, open_store(settings))


def findings(look: Callable[[], Iterator[Finding]], level: str, words: str) -> list[Finding]:
    return [finding for finding in look() if finding.level == level and words in finding.what]


def test_a_sound_registry_has_no_fault(settings: Settings, keeper: Retention, lineage: str) -> None:
    publish(keeper, lineage)
    keeper.set_live(lineage, 1)
    found = list(Doctor(settings, lambda: BASE).examine())
    about_us = [finding for finding in found if lineage in finding.what]
    assert about_us == []
    assert any(finding.level == "ok" and "takes, keeps and deletes" in finding.what for finding in found)
    assert not list(open_store(settings).list("doctor/"))


def test_servers_that_are_down_and_ports_that_are_taken(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        doctor = Doctor(settings.model_copy(update={"ray_port": port}), lambda: BASE)
        (taken,) = findings(doctor.servers, "fault", "ray is down")
        assert str(port) in taken.what
        assert "PALIMPSEST_RAY_PORT" in taken.mend
    assert findings(doctor.servers, "warning", "ray is down")[0].mend == "`palimpsest up` starts it"
    assert findings(doctor.servers, "warning", "HTTP API is not ready")


class _Healthy(BaseHTTPRequestHandler):
    """MLflow, Ray with a token, and the HTTP API, as far as the doctor asks them."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/health", "/api/gcs_healthz", "/readyz"} else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_servers_of_ones_own_are_asked_and_are_no_business_of_the_local_stack(tmp_path: Path) -> None:
    """Neither are they down for having no process here, nor is what listens on a local port somebody else's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        url = f"http://127.0.0.1:{port}"
        ports = {"mlflow_port": port, "dashboard_port": port, "ray_port": port}
        own = {"mlflow_uri": f"{url}/", "ray_address": url, "public_url": url}
        doctor = Doctor(Settings.model_validate({"home": tmp_path, **ports, **own}), lambda: BASE)
        assert [(finding.level, finding.what) for finding in doctor.servers()] == [
            ("ok", f"mlflow answers at {url}/health"),
            ("ok", f"ray answers at {url}/api/gcs_healthz"),
            ("ok", f"the HTTP API at {url} is ready"),
        ]
        server.shutdown()
    mlflow, ray, api = doctor.servers()
    assert (mlflow.level, ray.level, api.level) == ("fault", "fault", "warning")
    assert mlflow.mend == "see that it runs, or correct PALIMPSEST_MLFLOW_URI"
    assert ray.mend == "see that it runs, or correct PALIMPSEST_RAY_ADDRESS"
    assert api.mend == "see that it runs, or correct PALIMPSEST_PUBLIC_URL"


def test_a_registry_that_does_not_answer(settings: Settings) -> None:
    dead = settings.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"})
    found = [finding for finding in Doctor(dead, lambda: BASE).examine() if finding.level == "fault"]
    words = "MLflow at http://127.0.0.1:9 does not answer"
    assert len([finding for finding in found if words in finding.what]) == 1, "three looks ask it"


def test_a_wrong_setting_is_said_and_ends_the_examination(tmp_path: Path) -> None:
    wrong = Settings(home=tmp_path, store="ftp://elsewhere")
    (fault,) = [f for f in Doctor(wrong, lambda: BASE).examine() if "ftp" in f.what]
    assert fault.level == "fault"


class Overwriting(DirectoryStore):
    """A store that ignores If-None-Match."""

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_a_store_without_conditional_writes(tmp_path: Path) -> None:
    doctor = Doctor(Settings(), lambda: BASE)
    assert findings(lambda: doctor.store(Overwriting(tmp_path)), "fault", "overwrites")


def test_overdue_images(store: ObjectStore) -> None:
    doctor = Doctor(Settings(), lambda: BASE)
    assert findings(lambda: doctor.intake(store), "ok", "no concept image")
    manifest = {"count": 1, "digest": "", "created": 0.0}
    store.put(f"intake/in-{uuid4().hex}/manifest.json", json.dumps(manifest).encode())
    assert findings(lambda: doctor.intake(store), "fault", "1 submissions hold images")


def test_a_lease_whose_holder_died(store: ObjectStore) -> None:
    from services.lease import lease

    doctor = Doctor(Settings(lease_seconds=3.0), lambda: BASE)
    with lease(store, "alive", ttl=0.4, holder="a"):  # it beats ten times while the doctor watches
        assert not findings(lambda: doctor.leases(store), "warning", "")
        store.put("leases/dead/000000000001", b'{"holder": "b", "beat": 4, "released": false}')
        (dead,) = findings(lambda: doctor.leases(store), "warning", "`dead` has died")
        assert "takes over" in dead.mend


def test_a_lineage_of_another_base(settings: Settings, keeper: Retention, lineage: str) -> None:
    """Whether it is live, or never was, or is no more: to promote one of its versions would help nobody."""
    publish(keeper, lineage, verdict=Verdict(passed=False))
    doctor, ours = Doctor(settings, lambda: OTHER_BASE), Doctor(settings, lambda: BASE)
    for move in (lambda: None, lambda: keeper.set_live(lineage, 1), lambda: keeper.clear_live(lineage)):
        move()
        words = f"`{lineage}` belongs to the base {BASE.revision}; other is {OTHER_BASE.revision}"
        (fault,) = findings(lambda: doctor.registry(keeper), "fault", words)
        assert fault.mend == "set PALIMPSEST_BASE back, or learn its concepts anew in another lineage"
        assert not findings(lambda: doctor.registry(keeper), "warning", f"`{lineage}`")
        assert not findings(lambda: ours.registry(keeper), "fault", f"`{lineage}`")
    (warning,) = findings(lambda: ours.registry(keeper), "warning", f"no version of `{lineage}` is live")
    assert warning.mend == f"`palimpsest promote N --lineage {lineage}` makes one live"


def test_a_version_that_was_changed(
    settings: Settings, keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    first = publish(keeper, lineage)
    publish(keeper, lineage)
    key = f"{folder(stack_store, mlflow_client, first)}/training_state.safetensors"
    stack_store.put(key, b"damaged")
    mlflow_client.set_registered_model_alias(lineage, LIVE, "2")
    broken = f"{lineage}@1 does not verify"
    assert not findings(lambda: Doctor(settings, lambda: BASE).versions(keeper), "fault", broken)
    thorough = Doctor(settings, lambda: BASE, thorough=True)
    assert findings(lambda: thorough.versions(keeper), "fault", broken)


def test_a_move_that_was_overruled(
    settings: Settings, keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    for _ in range(2):
        publish(keeper, lineage)
    keeper.set_live(lineage, 1)
    keeper.look_into(lineage, LIVE, 2, datetime.now(UTC))
    doctor = Doctor(settings, lambda: BASE)
    (found,) = findings(lambda: doctor.audit(keeper, stack_store), "warning", f"a move of live of `{lineage}` to 2")
    assert found.mend == f"if 2 was meant: `palimpsest promote 2 --lineage {lineage}`"


def test_moves_in_mlflow_itself_and_a_damaged_log(
    settings: Settings, keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    publish(keeper, lineage)
    mlflow_client.set_registered_model_alias(lineage, LIVE, "1")
    doctor = Doctor(settings, lambda: BASE)
    assert findings(lambda: doctor.audit(keeper, stack_store), "warning", f"live of `{lineage}` was moved")
    key = f"audit/{lineage}/000000000001.json"
    whole = stack_store.get(key)
    stack_store.put(key, b"damaged")
    (fault,) = [finding for finding in doctor.examine() if finding.level == "fault" and key in finding.what]
    assert fault.mend.startswith(
        f"put the objects of audit/{lineage}/ back from a backup; docs/operations.md, Who moved"
    )
    stack_store.put(key, whole)
    assert not findings(lambda: doctor.audit(keeper, stack_store), "fault", key)


def test_a_damaged_log_that_no_backup_has_is_begun_anew(
    settings: Settings, keeper: Retention, mlflow_client: Mlflow, stack_store: ObjectStore, lineage: str
) -> None:
    """As docs/operations.md says: its objects are taken away, and the tags that say how far it was carried out."""
    for _ in range(2):
        publish(keeper, lineage)
    keeper.set_live(lineage, 1)
    doctor = Doctor(settings, lambda: BASE)
    for key in list(stack_store.list(f"audit/{lineage}/"))[-2:]:
        stack_store.delete(key)
    (fault,) = findings(
        lambda: doctor.audit(keeper, stack_store), "fault", f"audit log of `{lineage}` has lost its end"
    )
    assert f"audit/{lineage}/" in fault.mend

    stack_store.delete_prefix(f"audit/{lineage}/")
    recorded = [tag for tag in mlflow_client.get_registered_model(lineage).tags if "recorded." in tag]
    assert recorded
    for tag in recorded:
        mlflow_client.delete_registered_model_tag(lineage, tag)
    anew = [(move.alias, move.after, move.via) for move in keeper.history(lineage)]
    assert sorted(anew) == [("candidate", 2, "found"), ("live", 1, "found")]
    assert not findings(lambda: doctor.audit(keeper, stack_store), "fault", f"`{lineage}`")
    keeper.set_live(lineage, 2)
    assert keeper.undo(lineage) == 1
