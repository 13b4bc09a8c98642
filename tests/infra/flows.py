"""Who may open a connection to whom, by a set of NetworkPolicies: one's egress and the other's ingress must allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HERE = "palimpsest"
_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Pod:
    """A pod: its labels, and the namespace that it is in."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = HERE


def allowed(policies: Sequence[dict[str, Any]], source: Pod, target: Pod, port: int) -> bool:
    """Whether `source` may open a TCP connection to a port of `target`."""
    return _passes(policies, source, target, port, "Egress") and _passes(policies, target, source, port, "Ingress")


def _passes(policies: Sequence[dict[str, Any]], pod: Pod, peer: Pod, port: int, way: str) -> bool:
    if pod.namespace != HERE:
        return True  # these policies rule their own namespace only
    ruling = [
        p["spec"] for p in policies if way in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], pod.labels)
    ]
    if not ruling:
        return True
    rules = [rule for spec in ruling for rule in spec.get(way.lower(), ())]
    return any(_takes(rule, "to" if way == "Egress" else "from", peer, port) for rule in rules)


def _takes(rule: dict[str, Any], side: str, peer: Pod, port: int) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(p["port"] == port and p.get("protocol", "TCP") == "TCP" for p in ports):
        return False
    return any(_is(peer, wanted) for wanted in rule[side])


def _is(peer: Pod, wanted: dict[str, Any]) -> bool:
    if "ipBlock" in wanted:
        return False  # addresses outside the cluster
    namespace = wanted.get("namespaceSelector")
    near = peer.namespace == HERE if namespace is None else selects(namespace, {_NAME: peer.namespace})
    return near and selects(wanted.get("podSelector", {}), peer.labels)


def selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (`matchLabels`, and `In` of `matchExpressions`) takes some labels."""
    exact = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    expressions = selector.get("matchExpressions", ())
    assert all(e["operator"] == "In" for e in expressions), "this reads the operator In only"
    return exact and all(labels.get(e["key"]) in e["values"] for e in expressions)
