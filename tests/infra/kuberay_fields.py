"""The fields of KubeRay's resources, for no package has its schemas.

Written down from its API reference (ray.io/v1, KubeRay 1.6.2).

What Kubernetes itself defines inside them (pods, environment sources, resources) is named by a Kubernetes kind that
carries it, and checked by that kind's own schema.
"""

from collections.abc import Mapping
from typing import Any

TEXT, NUMBER, FLAG, WORDS, ANY, POD = "text", "number", "flag", "words", "any", "pod"

_CREDENTIAL = {"value": TEXT, "valueFrom": ANY}
_AUTOSCALER = {
    "resources": ANY,
    "image": TEXT,
    "imagePullPolicy": TEXT,
    "securityContext": ANY,
    "idleTimeoutSeconds": NUMBER,
    "upscalingMode": TEXT,
    "env": ANY,
    "envFrom": ANY,
    "volumeMounts": ANY,
    "version": TEXT,
}
_HEAD = {"template": POD, "headService": ANY, "enableIngress": FLAG, "rayStartParams": WORDS, "serviceType": TEXT}
_WORKERS = {
    "groupName": TEXT,
    "replicas": NUMBER,
    "minReplicas": NUMBER,
    "maxReplicas": NUMBER,
    "idleTimeoutSeconds": NUMBER,
    "rayStartParams": WORDS,
    "template": POD,
    "numOfHosts": NUMBER,
}
_CLUSTER = {
    "rayVersion": TEXT,
    "authOptions": {"mode": TEXT, "secretName": TEXT, "enableK8sTokenAuth": FLAG},
    "gcsFaultToleranceOptions": {
        "redisAddress": TEXT,
        "redisUsername": _CREDENTIAL,
        "redisPassword": _CREDENTIAL,
        "externalStorageNamespace": TEXT,
    },
    "enableInTreeAutoscaling": FLAG,
    "autoscalerOptions": _AUTOSCALER,
    "headServiceAnnotations": WORDS,
    "headGroupSpec": _HEAD,
    "workerGroupSpecs": [_WORKERS],
    "suspend": FLAG,
}
SPECS: Mapping[str, Any] = {
    "RayCluster": _CLUSTER,
    "RayService": {"serveConfigV2": TEXT, "rayClusterConfig": _CLUSTER, "serveService": ANY},
    "RayJob": {
        "clusterSelector": WORDS,
        "rayClusterSpec": _CLUSTER,
        "submissionMode": TEXT,
        "entrypoint": TEXT,
        "entrypointNumCpus": NUMBER,
        "entrypointNumGpus": NUMBER,
        "runtimeEnvYAML": TEXT,
        "metadata": WORDS,
        "jobId": TEXT,
        "activeDeadlineSeconds": NUMBER,
        "backoffLimit": NUMBER,
        "ttlSecondsAfterFinished": NUMBER,
        "shutdownAfterJobFinishes": FLAG,
        "submitterPodTemplate": POD,
        "suspend": FLAG,
    },
}
_KINDS = {TEXT: str, NUMBER: int, FLAG: bool, POD: dict}


def faults(value: Any, shape: Any, place: str = "spec") -> list[str]:
    """What of a resource's spec KubeRay does not know, or knows as something else."""
    if isinstance(shape, list):
        return [fault for n, item in enumerate(value) for fault in faults(item, shape[0], f"{place}[{n}]")]
    if isinstance(shape, Mapping):
        unknown = [f"{place}.{name}: unknown" for name in value if name not in shape]
        known = [name for name in value if name in shape]
        return unknown + [fault for name in known for fault in faults(value[name], shape[name], f"{place}.{name}")]
    if shape == WORDS:
        fine = all(isinstance(item, str) for pair in value.items() for item in pair)
    else:
        fine = shape == ANY or type(value) is _KINDS[shape]
    return [] if fine else [f"{place}: {value!r} is no {shape}"]
