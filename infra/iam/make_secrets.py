"""Make every secret that the cluster needs, once: `python infra/iam/make_secrets.py compose` or `kuberay`.

Nothing that exists is overwritten, so running it again is safe; delete a file to have that one secret made anew.
Only the standard library is needed.
"""

import argparse
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

INFRA = Path(__file__).parents[1]
_POLICIES = Path(__file__).parent
_BYTES = 32

ROLES = {
    "mlflow": ("mlflow",),
    "operator": ("operator",),
    "ray": ("training", "serving"),
    "keeper": ("training", "operator"),
}
"""User of the compose stack's S3 server, which is its access key too -> the policies of this folder that it has."""
COMPOSE = (
    *("postgres_password", "mlflow_password", "mlflow_flask_key", "mlflow_webhook_key"),
    *("ray_token", "watch_token", "webhook_secret", "grafana_password"),
)
"""One file each; beside them `s3_<role>`, the secret key of a role."""
KUBERAY = {
    "ray-token": ("auth_token",),
    "watch": ("token",),
    "webhook": ("secret",),
    "redis": ("password",),
    "postgres": ("password",),
    "mlflow": (
        *("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    ),
}
"""Name of a Kubernetes secret -> its keys."""


_FERNET = {"mlflow_webhook_key", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"}
"""Keys that must be 32 bytes in base64 to the letter, padding included."""


def _new(name: str) -> str:
    return secrets.token_urlsafe(_BYTES) + ("=" if name in _FERNET else "")


def make_compose(folder: Path) -> None:
    """Write the compose stack's secrets, and the S3 server's users with their policies."""
    _private(folder)
    for name in (*COMPOSE, *(f"s3_{role}" for role in ROLES)):
        _write(folder / name, _new(name))
    keys = {role: (folder / f"s3_{role}").read_text() for role in ROLES}
    _write(folder / "s3.json", json.dumps(seaweedfs_users(keys), indent=2))


def seaweedfs_users(keys: Mapping[str, str]) -> dict[str, list[dict[str, object]]]:
    """SeaweedFS's configuration: each role, with its secret key, has the policies of this folder and nothing else."""
    used = sorted({policy for policies in ROLES.values() for policy in policies})
    return {
        "identities": [
            {
                "name": role,
                "credentials": [{"accessKey": role, "secretKey": keys[role]}],
                "actions": [],
                "policyNames": list(policies),
            }
            for role, policies in ROLES.items()
        ],
        "policies": [{"name": name, "content": (_POLICIES / f"{name}.json").read_text()} for name in used],
    }


def make_kuberay(folder: Path) -> None:
    """Write one file of variables for each Kubernetes secret, and the kustomization that turns them into secrets."""
    _private(folder)
    for name, keys in KUBERAY.items():
        _write(folder / f"{name}.env", "".join(f"{key}={_new(key)}\n" for key in keys))
    generator = [{"name": name, "envs": [f"{name}.env"]} for name in KUBERAY]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        # Ray's own resources name secrets in places where kustomize does not look for names.
        "generatorOptions": {"disableNameSuffixHash": True},
        "secretGenerator": generator,
    }
    _write(folder / "kustomization.yaml", json.dumps(kustomization, indent=2))


def _private(folder: Path) -> None:
    """A folder that only its owner may enter, and that git does not see."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    _write(folder / ".gitignore", "*\n")


def _write(path: Path, text: str) -> None:
    """Write a file unless it exists. Containers run as other users: the file may be read, the folder not be entered."""
    if not path.exists():
        path.write_text(text)
        path.chmod(0o444)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=("compose", "kuberay"))
    target = parser.parse_args().target
    folder = INFRA / target / "secrets"
    {"compose": make_compose, "kuberay": make_kuberay}[target](folder)
    print(f"secrets are in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
