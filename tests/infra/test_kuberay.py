"""The Kubernetes manifests: valid by Kubernetes' schemas, by Ray's own readers, and as strict as they say."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from cp_serve.app import NAME, application
from cp_train.__main__ import _parser
from services.settings import Settings
from tests.infra.files import INFRA, ROOT, compose, document, kuberay, pods, script
from tests.infra.kuberay_fields import SPECS, faults

VERSION = "1.34"
"""Of Kubernetes."""
RESOURCES = kuberay()
PODS = dict(pods(RESOURCES))
OWN = [resource for resource in RESOURCES if resource["kind"] in SPECS]
make_secrets = script("iam/make_secrets.py")


def named(resource: dict[str, Any]) -> str:
    return f"{resource['kind']}/{resource['metadata'].get('name', 'job')}"


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [resource for resource in RESOURCES if resource["kind"] == kind]


def containers() -> list[tuple[str, dict[str, Any]]]:
    """The pod's name and the container, those that run before the others included."""
    specs = {name: pod["spec"] for name, pod in PODS.items()}
    return [
        (name, one) for name, spec in specs.items() for one in (*spec.get("initContainers", ()), *spec["containers"])
    ]


def waiting() -> dict[str, dict[str, Any]]:
    """Pod -> the container that waits for the base model before the pod starts."""
    return {name: container for name, container in containers() if container["name"] == "wait-for-base"}


@pytest.mark.parametrize("resource", [r for r in RESOURCES if r["kind"] not in SPECS], ids=named)
def test_valid_by_kubernetes_schema(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_valid_by_kubernetes_schema(name: str) -> None:
    template = {"metadata": {"name": "pod"}, **PODS[name]}
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
    kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_schemas_would_find_a_slip() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"port": [{"port": 1}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSION, strict=True)
    assert faults({"rayversion": "2.60.0"}, SPECS["RayCluster"]) == ["spec.rayversion: unknown"]
    assert faults({"headGroupSpec": {"rayStartParams": {"num-cpus": 0}}}, SPECS["RayCluster"])


@pytest.mark.parametrize("resource", OWN, ids=named)
def test_kuberay_knows_every_field(resource: dict[str, Any]) -> None:
    assert resource["apiVersion"] == "ray.io/v1"
    assert faults(resource["spec"], SPECS[resource["kind"]]) == []


def clusters() -> dict[str, dict[str, Any]]:
    (training,), (serving,) = of_kind("RayCluster"), of_kind("RayService")
    return {"training": training["spec"], "serving": serving["spec"]["rayClusterConfig"]}


@pytest.mark.parametrize(("name", "least"), [("training", 0), ("serving", 1)])
def test_rays_autoscaler_reads_the_groups(name: str, least: int) -> None:
    resource = {"metadata": {"name": name, "namespace": "palimpsest"}, "spec": clusters()[name]}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    group = config["available_node_types"]["gpu"]
    assert (group["min_workers"], group["max_workers"]) == (least, 4)
    assert (group["resources"]["GPU"], group["resources"]["CPU"]) == (1, 4)
    assert config["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    assert config["idle_timeout_minutes"] == 5


@pytest.mark.parametrize("name", clusters())
def test_a_cluster_asks_for_the_token_and_outlives_its_head(name: str) -> None:
    cluster = clusters()[name]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    redis = cluster["gcsFaultToleranceOptions"]
    assert redis["redisAddress"] == "redis:6379"
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "password"}
    assert f"ray[default,serve,train]=={cluster['rayVersion']}" in (ROOT / "pyproject.toml").read_text()


def test_the_head_has_the_port_that_kuberay_makes_the_service_from() -> None:
    """Most of its versions refuse without it."""
    (settings,) = of_kind("ConfigMap")
    assert "http://palimpsest-serve-svc:8000/" in settings["data"]["PALIMPSEST_WEBHOOK_URL"]
    head, *_ = PODS["RayService/palimpsest/head"]["spec"]["containers"]
    assert {"containerPort": 8000, "name": "serve"} in head["ports"]


def test_who_reads_the_base_first_waits_for_it() -> None:
    """A replica does, and a job on the head that it was handed to; its workers come later."""
    assert waiting().keys() == {"RayCluster/training/head", "RayService/palimpsest/gpu"}
    first, second = waiting().values()
    assert first == second


def wait(base: str) -> "subprocess.Popen[str]":
    (container, _) = waiting().values()
    command = [*container["command"][:-1], container["command"][-1].replace("/models/", f"{Path(base).parent}/")]
    return subprocess.Popen(command, env=os.environ | {"PALIMPSEST_BASE": base}, stdout=subprocess.PIPE, text=True)


def test_the_wait_ends_once_the_base_is_there(tmp_path: Path) -> None:
    base = tmp_path / "stable-diffusion-v1-5"
    with wait(str(base)) as process:
        assert process.stdout
        assert process.stdout.readline() == f"waiting for {base}\n"
        base.mkdir()
        (base / "model_index.json").touch()
        assert process.wait(60) == 0
    with wait(str(base)) as process:
        assert (process.communicate(timeout=60)[0], process.returncode) == ("", 0)


@pytest.mark.parametrize("base", ["embedded", "an-organisation/a-model", "/elsewhere/models/base"])
def test_nobody_waits_for_a_base_that_is_not_on_the_volume(base: str) -> None:
    (container, _) = waiting().values()
    environment = os.environ | {"PALIMPSEST_BASE": base}
    run = subprocess.run(container["command"], env=environment, capture_output=True, check=True, timeout=60)
    assert run.stdout == b""


def test_mlflow_starts_as_on_one_host() -> None:
    """Which is started for real in test_mlflow_auth.py."""
    container, service = dict(containers())["Deployment/mlflow"], compose()["services"]["mlflow"]
    given = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    assert container["command"] == service["command"]
    assert given.items() <= service["environment"].items()


@pytest.mark.parametrize("config", ["compose", "kuberay"])
def test_serve_takes_the_configuration(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is built from it as Serve does, with the settings that the manifests give."""
    (service,) = of_kind("RayService")
    text = service["spec"]["serveConfigV2"] if config == "kuberay" else (INFRA / "compose" / "serve.yaml").read_text()
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (app,) = schema.applications
    assert (app.name, app.import_path, app.route_prefix) == (NAME, f"{application.__module__}:application", "/")
    assert (schema.http_options.host, schema.http_options.port) == ("0.0.0.0", 8000)  # noqa: S104
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    built = build_app(call_user_app_builder_with_args_if_necessary(application, {}), name=app.name)
    deployments = {deployment.name: deployment for deployment in built.deployments}
    assert {deployment.name for deployment in app.deployments} <= deployments.keys() - {"denoiser"}, "settings say it"
    gpus = deployments["denoiser"].ray_actor_options["num_gpus"]
    assert gpus == float(environment()["PALIMPSEST_REPLICA_GPUS"]) > 0, "which keeps it off the head"


def environment() -> dict[str, str]:
    """What every Ray pod reads."""
    (settings,) = of_kind("ConfigMap")
    for name, container in containers():
        if name.startswith("Ray"):
            assert {"configMapRef": {"name": settings["metadata"]["name"]}} in container["envFrom"]
    return dict(settings["data"])


def test_settings_are_settings() -> None:
    given = {key for key in environment() if key.startswith("PALIMPSEST_")}
    assert given <= {f"PALIMPSEST_{name.upper()}" for name in Settings.model_fields}
    assert "PALIMPSEST_STORE" in given


def test_the_job_is_one_that_the_command_takes() -> None:
    (job,) = of_kind("RayJob")
    python, flag, module, *arguments = job["spec"]["entrypoint"].split()
    assert (python, flag, module) == ("python", "-m", "cp_train")
    options = _parser().parse_args(arguments)
    assert job["spec"]["metadata"] == {"lineage": options.lineage, "concept": options.concept}
    (training,) = of_kind("RayCluster")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": training["metadata"]["name"]}
    assert job["metadata"]["namespace"] == document("kuberay/kustomization.yaml")["namespace"]
    assert "job.yaml" not in document("kuberay/kustomization.yaml")["resources"]


@pytest.mark.parametrize(("name", "container"), containers(), ids=[f"{pod}/{one['name']}" for pod, one in containers()])
def test_no_container_has_more_rights_than_it_needs(name: str, container: dict[str, Any]) -> None:
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == expected
    assert container["resources"]["limits"]["memory"]
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not [volume for volume in pod.get("volumes", ()) if "hostPath" in volume]


def test_only_the_autoscalers_may_ask_kubernetes() -> None:
    assert not any(account["automountServiceAccountToken"] for account in of_kind("ServiceAccount"))
    asking = {name for name, pod in PODS.items() if pod["spec"].get("automountServiceAccountToken", False)}
    assert asking == {"RayCluster/training/head", "RayService/palimpsest/head"}


def test_the_namespace_refuses_pods_with_more_rights() -> None:
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for cluster in clusters().values():  # KubeRay puts the autoscaler beside the head
        context = cluster["autoscalerOptions"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_nothing_is_exposed() -> None:
    assert {service["spec"].get("type", "ClusterIP") for service in of_kind("Service")} == {"ClusterIP"}
    assert {cluster["headGroupSpec"]["serviceType"] for cluster in clusters().values()} == {"ClusterIP"}
    assert not of_kind("Ingress")


def test_every_secret_is_made_by_the_script_and_none_stands_in_a_file() -> None:
    text = yaml.safe_dump_all(RESOURCES)
    wanted = {(ref["name"], ref["key"]) for ref in found(RESOURCES, "secretKeyRef")}
    made = {(name, key) for name, keys in make_secrets.KUBERAY.items() for key in keys}
    assert wanted <= made
    assert {cluster["authOptions"]["secretName"] for cluster in clusters().values()} <= set(make_secrets.KUBERAY)
    whole = {ref["name"] for ref in found(RESOURCES, "secretRef") if not ref.get("optional")}
    assert whole <= set(make_secrets.KUBERAY)
    assert not of_kind("Secret")
    assert not re.search(r"(?i)(password|token|secret)\w*[=:] *['\"]?[A-Za-z0-9+/_-]{12,}", text)


def test_what_is_named_is_there() -> None:
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    assert {
        pod["spec"]["serviceAccountName"] for pod in PODS.values() if "serviceAccountName" in pod["spec"]
    } == accounts
    maps = {config["metadata"]["name"] for config in of_kind("ConfigMap")} | {"mlflow-auth"}
    assert {ref["name"] for ref in [*found(RESOURCES, "configMapRef"), *found(RESOURCES, "configMap")]} <= maps
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    assert {ref["claimName"] for ref in found(RESOURCES, "persistentVolumeClaim")} == claims
    labels = [pod["metadata"]["labels"].items() for pod in PODS.values()]
    for service in of_kind("Service"):
        assert any(service["spec"]["selector"].items() <= pod for pod in labels), named(service)
    named_there = set(document("kuberay/kustomization.yaml")["resources"]) - {"secrets"}
    assert all((INFRA / "kuberay" / name).exists() for name in named_there)


def found(value: Any, name: str) -> list[dict[str, Any]]:
    """Everything called `name`, however deep."""
    if isinstance(value, list):
        return [hit for item in value for hit in found(item, name)]
    if isinstance(value, dict):
        here = [value[name]] if isinstance(value.get(name), dict) else []
        return here + [hit for item in value.values() for hit in found(item, name)]
    return []


def test_kustomize_builds_it(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("NO KUBECTL: that kustomize builds the manifests is not tested")
    shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns("secrets", "samples", "local"))
    command = [kubectl, "kustomize", str(tmp_path / "infra" / "kuberay")]
    assert subprocess.run(command, capture_output=True, check=False).returncode, "it needs secrets that were made"
    make_secrets.make_kuberay(tmp_path / "infra" / "kuberay" / "secrets")
    built = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    resources = list(yaml.safe_load_all(built))
    specs = [pod["spec"] for _, pod in pods(resources)]
    images = {one["image"] for spec in specs for one in (*spec.get("initContainers", ()), *spec["containers"])}
    assert all(re.search(r":\d+\.\d+", image) for image in images)
    assert {resource["metadata"]["namespace"] for resource in resources if resource["kind"] != "Namespace"} == {
        "palimpsest"
    }
    assert {r["metadata"]["name"] for r in resources if r["kind"] == "Secret"} == set(make_secrets.KUBERAY)
