"""Secrets are made once, differ, stay private, and nothing starts with a default."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.infra.files import INFRA, script

make_secrets = script("iam/make_secrets.py")
ENTRYPOINT = INFRA / "docker" / "entrypoint.sh"


@pytest.mark.parametrize("target", ["compose", "kuberay"])
def test_made_once_and_private(target: str, tmp_path: Path) -> None:
    make, folder = getattr(make_secrets, f"make_{target}"), tmp_path / "secrets"
    make(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert before[".gitignore"] == b"*\n"


def test_every_secret_of_compose_is_long_and_its_own(tmp_path: Path) -> None:
    make_secrets.make_compose(tmp_path / "secrets")
    names = (*make_secrets.COMPOSE, *(f"s3_{role}" for role in make_secrets.ROLES))
    values = [(tmp_path / "secrets" / name).read_text() for name in names]
    assert min(map(len, values)) >= 43
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("target", ["compose", "kuberay"])
def test_mlflow_takes_its_key_for_the_webhooks_secret(target: str, tmp_path: Path) -> None:
    """Not every string is one: it must be a Fernet key."""
    getattr(make_secrets, f"make_{target}")(tmp_path)
    text = (tmp_path / ("mlflow_webhook_key" if target == "compose" else "mlflow.env")).read_text()
    key = text.strip().rpartition("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY=")[2]
    assert Fernet(key).decrypt(Fernet(key).encrypt(b"secret")) == b"secret"


def test_the_store_knows_the_keys_that_were_made(tmp_path: Path) -> None:
    make_secrets.make_compose(tmp_path / "secrets")
    users = json.loads((tmp_path / "secrets" / "s3.json").read_text())["identities"]
    for user in users:
        (credentials,) = user["credentials"]
        assert credentials["accessKey"] == user["name"]
        assert credentials["secretKey"] == (tmp_path / "secrets" / f"s3_{user['name']}").read_text()
        assert not user["actions"], "rights come from the policies alone"


def run(secrets: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ENTRYPOINT), "sh", "-c", 'printf "%s" "$RAY_AUTH_TOKEN"']
    environment = {"PATH": os.environ["PATH"], "SECRETS": str(secrets)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_secret_becomes_a_variable(tmp_path: Path) -> None:
    (tmp_path / "RAY_AUTH_TOKEN").write_text("t" * 43)
    (tmp_path / "s3.json").write_text("{}")  # a file, not a variable
    result = run(tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "t" * 43, "")


@pytest.mark.parametrize("default", ["", "password1234", "admin"])
def test_nothing_starts_with_a_default(default: str, tmp_path: Path) -> None:
    (tmp_path / "RAY_AUTH_TOKEN").write_text(default)
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "RAY_AUTH_TOKEN has fewer than 24 characters" in result.stderr
    assert not default or default not in result.stderr.replace("make_secrets", "")
