"""Who may speak to whom on Kubernetes: exactly this, and nothing else."""

import pytest

from tests.infra.files import documents, kuberay, pods
from tests.infra.flows import Pod, allowed, selects

POLICIES = documents("kuberay/network.yaml")
_PARTS = {
    "postgres": "StatefulSet/postgres",
    "redis": "StatefulSet/redis",
    "mlflow": "Deployment/mlflow",
    "training": "RayCluster/training/gpu",
    "training head": "RayCluster/training/head",
    "serving": "RayService/palimpsest/gpu",
    "serving head": "RayService/palimpsest/head",
}
_TEMPLATES = dict(pods(kuberay()))


def _labels(name: str) -> dict[str, str]:
    """A pod's labels, and KubeRay's own for a head."""
    head = {"ray.io/node-type": "head"} if name.endswith("/head") else {}
    return _TEMPLATES[name]["metadata"]["labels"] | head


PARTS = {part: Pod(_labels(name)) for part, name in _PARTS.items()}
PARTS |= {
    "client": Pod({"palimpsest/client": "true"}, "web"),
    "stranger": Pod({}, "web"),
    "operator": Pod({}, "kuberay-system"),
    "prometheus": Pod({}, "monitoring"),
    "anybody here": Pod({}),
}
_RAY = ("training", "training head", "serving", "serving head")
PORTS = {"postgres": 5432, "redis": 6379, "mlflow": 5000, "jobs": 8265, "http": 8000, "figures": 8080, "gcs": 6379}
EXPECTED = {
    ("postgres", "postgres"): {"mlflow"},
    ("redis", "redis"): set(_RAY),
    ("mlflow", "mlflow"): set(_RAY),
    ("training head", "jobs"): {"training", "training head", "serving", "serving head", "operator"},
    ("training head", "gcs"): {"training", "training head"},
    ("training", "gcs"): {"training", "training head"},
    ("training", "figures"): {"training", "training head", "prometheus"},
    ("serving head", "jobs"): {"serving", "serving head", "operator"},
    ("serving head", "gcs"): {"serving", "serving head"},
    ("serving", "http"): {"serving", "serving head", "client", "operator", "prometheus", "mlflow"},
    ("serving", "figures"): {"serving", "serving head", "prometheus"},
}


@pytest.mark.parametrize(("target", "port"), EXPECTED)
def test_who_reaches(target: str, port: str) -> None:
    reaching = {name for name, source in PARTS.items() if allowed(POLICIES, source, PARTS[target], PORTS[port])}
    assert reaching == EXPECTED[target, port]


def test_every_policy_rules_somebody() -> None:
    for policy in POLICIES:
        selector = policy["spec"]["podSelector"]
        assert any(selects(selector, pod.labels) for pod in PARTS.values() if pod.namespace == "palimpsest")


def test_nobody_is_left_out() -> None:
    """A pod without labels is ruled both ways."""
    ways = {way for p in POLICIES if p["spec"]["podSelector"] == {} for way in p["spec"]["policyTypes"]}
    assert ways == {"Ingress", "Egress"}


def test_outside_is_reached_by_those_who_need_s3_and_never_the_machines_metadata() -> None:
    blocks = [
        (policy["spec"]["podSelector"], rule, peer["ipBlock"])
        for policy in POLICIES
        for rule in policy["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    ((selector, rule, block),) = blocks
    outside = {name for name, pod in PARTS.items() if pod.namespace == "palimpsest" and selects(selector, pod.labels)}
    assert outside == {"mlflow", *_RAY}
    assert block["except"] == ["169.254.0.0/16"]
    assert {port["port"] for port in rule["ports"]} == {443, 6443}
