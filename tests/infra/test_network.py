"""Who may speak to whom on Kubernetes: exactly this, and nothing else."""

from typing import Any

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
PORTS = {5000, 5432, 6379, 8000, 8080, 8265, 10001, 10002, 52365, 44217}
"""What somebody listens on: the manifests name most; of Ray's own, its client, a worker, two of its agents."""
CLUSTERS = {part: {name for name in _RAY if name.startswith(part.split()[0])} for part in _RAY}
"""Who reaches every port of a Ray pod: its own cluster."""
EXPECTED = {
    ("postgres", 5432): {"mlflow"},
    ("redis", 6379): set(_RAY),
    ("mlflow", 5000): set(_RAY),
    ("training head", 8265): {"serving", "serving head", "operator"},
    ("training", 8265): {"operator"},
    ("training head", 8080): {"prometheus"},
    ("training", 8080): {"prometheus"},
    ("serving head", 8265): {"operator"},
    ("serving", 8265): {"operator"},
    ("serving head", 8080): {"prometheus"},
    ("serving", 8080): {"prometheus"},
    ("serving head", 8000): {"client", "operator", "prometheus", "mlflow"},
    ("serving", 8000): {"client", "operator", "prometheus", "mlflow"},
}
"""Who else reaches whom on which port; on all others, nobody."""
TARGETS = [name for name, pod in PARTS.items() if pod.namespace == "palimpsest"]


def reaching(target: str, port: int, policies: list[dict[str, Any]] = POLICIES) -> set[str]:
    return {name for name, source in PARTS.items() if allowed(policies, source, PARTS[target], port)}


@pytest.mark.parametrize("port", sorted(PORTS))
@pytest.mark.parametrize("target", TARGETS)
def test_who_reaches(target: str, port: int) -> None:
    assert reaching(target, port) == CLUSTERS.get(target, set()) | EXPECTED.get((target, port), set())


def test_no_port_is_left_out() -> None:
    named = {
        port["containerPort"]
        for _, pod in pods(kuberay())
        for one in pod["spec"]["containers"]
        for port in one.get("ports", ())
    }
    assert named <= PORTS
    opened = {
        port["port"]
        for policy in POLICIES
        for rule in policy["spec"].get("ingress", ())
        for port in rule.get("ports", ())
    }
    assert opened <= named


@pytest.mark.parametrize("port", [10001, 52365])
def test_an_opened_port_would_be_found(port: int) -> None:
    hole = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "training"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": port}]}],
    }
    assert "stranger" in reaching("training head", port, [*POLICIES, {"spec": hole}])


def test_traces_go_to_a_collector_and_nothing_else_goes_to_its_namespace() -> None:
    collector = Pod({"app": "collector"}, "monitoring")
    for port in PORTS | {4318}:
        sending = {name for name in TARGETS if allowed(POLICIES, PARTS[name], collector, port)}
        assert sending == ({"serving", "serving head"} if port == 4318 else set())


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
