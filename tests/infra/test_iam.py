"""The S3 policies grant what `services/objects.py` does to those who need it, and a real server holds them to it."""

import ast
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from PIL import Image
from pyarrow import fs

from cp_serve import idempotency, pictures, signing
from services import audit, auth, objects, runs
from services.auth import Door, People
from services.errors import ForbiddenError, UnavailableError
from services.images import check_images
from services.intake import Intake
from services.lease import lease
from services.objects import open_store
from services.settings import Settings
from services.transfer import LASTING
from tests.infra.files import INFRA, ROOT, document
from tests.infra.store import BUCKET, POLICIES, Store

ACTIONS = {
    "put_object": {"s3:PutObject"},
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject"},
    "delete_object": {"s3:DeleteObject"},
    "list_objects_v2": {"s3:ListBucket"},
    "create_bucket": {"s3:CreateBucket"},
}
"""boto3's operations that `services/objects.py` calls -> what S3 asks a policy for."""
NOBODYS = {"s3:CreateBucket"}
"""`make_bucket` is the local stack's, which is its own administrator."""
CHECKPOINTS = {"s3:AbortMultipartUpload"}
"""Ray Train writes checkpoints with Arrow's own client, in parts."""
MAY = {
    "training": {"intake": "GPD", "leases": "GPD", "training": "GPD", "mlflow": "GP", "audit": "GP"},
    "serving": {
        "intake": "GPD",
        "leases": "GPD",
        "answers": "GPD",
        "pictures": "GPD",
        "mlflow": "G",
        "audit": "GP",
        "secrets": "GP",
        "owners": "GP",
    },
    "mlflow": {"mlflow": "G"},
    "operator": {
        "intake": "GPD",
        "leases": "GPD",
        "doctor": "GPD",
        "training": "D",
        "mlflow": "GD",
        "audit": "GP",
        "people": "GPD",
        "owners": "GPD",
    },
}
"""Policy -> folder of the store -> Get, Put, Delete. What is not here is forbidden."""
FOLDERS = {
    "doctor",
    "intake",
    "leases",
    objects.TRAINING,
    runs.ARTIFACTS,
    audit.AUDIT,
    auth.PEOPLE,
    auth.OWNERS,
    pictures.FOLDER,
    idempotency.FOLDER,
    signing.KEY.partition("/")[0],
}


def statements(policy: str) -> list[dict[str, Any]]:
    found = document(f"iam/{policy}.json")
    assert found["Version"] == "2012-10-17"
    return list(found["Statement"])


def as_set(value: str | list[str]) -> set[str]:
    return {value} if isinstance(value, str) else set(value)


def granted(policy: str) -> set[str]:
    return {action for statement in statements(policy) for action in as_set(statement["Action"])}


def operations() -> set[str]:
    """What `services/objects.py` asks boto3's client for."""
    tree = ast.parse((ROOT / "services" / "objects.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = {ast.unparse(call.func) for call in calls}
    direct = {name.rpartition(".")[2] for name in named if name.startswith(("self._client.", "client."))}
    paged = {call.args[0].value for call in calls if call.func.attr == "get_paginator"}
    return (direct | paged) - {"get_paginator", "paginate", "close"}


def test_every_operation_is_known() -> None:
    assert operations() == set(ACTIONS)


def test_granted_is_what_is_called_and_nothing_else() -> None:
    called = set().union(*ACTIONS.values()) | CHECKPOINTS
    assert set().union(*map(granted, POLICIES)) == called - NOBODYS


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_is_wider_than_its_folders(policy: str) -> None:
    bucket = f"arn:aws:s3:::{BUCKET}"
    for statement in statements(policy):
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        listing = as_set(statement["Action"]) == {"s3:ListBucket"}
        wanted = {bucket} if listing else {f"{bucket}/{folder}/*" for folder in MAY[policy]}
        assert as_set(statement["Resource"]) <= wanted


def test_every_folder_of_the_store_is_somebodys() -> None:
    assert {folder for folders in MAY.values() for folder in folders} == FOLDERS


def test_there_is_no_other_policy() -> None:
    assert {path.stem for path in (INFRA / "iam").glob("*.json")} == set(POLICIES) == set(MAY)


@contextmanager
def signed_in(store: Store, policy: str) -> Iterator[Settings]:
    """This process as the user that has one policy, or as the keeper."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", policy)
        patch.setenv("AWS_SECRET_ACCESS_KEY", store.key(policy))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield Settings(store=f"s3://{BUCKET}", s3_endpoint=store.endpoint)


def client(store: Store, policy: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=policy,
        aws_secret_access_key=store.key(policy),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def allowed(call: Callable[[], Any]) -> bool:
    """Whether the server carries out a call, or finds nothing to carry it out on."""
    try:
        call()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code not in {"AccessDenied", "NoSuchKey"}:
            raise
        return bool(code == "NoSuchKey")
    return True


@pytest.mark.parametrize("policy", POLICIES)
def test_a_real_server_holds_everybody_to_it(policy: str, compose_store: Store) -> None:
    s3 = client(compose_store, policy)
    held = {}
    for folder in sorted(FOLDERS | {"elsewhere"}):
        at = {"Bucket": BUCKET, "Key": f"{folder}/of-{policy}"}
        rights = [
            "G" if allowed(lambda at=at: s3.get_object(**at)) else "",
            "P" if allowed(lambda at=at: s3.put_object(**at, Body=b"x")) else "",
            "D" if allowed(lambda at=at: s3.delete_object(**at)) else "",
        ]
        if any(rights):
            held[folder] = "".join(rights)
    s3.close()
    assert held == MAY[policy]


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_makes_buckets_or_lists_more_than_its_own(policy: str, compose_store: Store) -> None:
    s3 = client(compose_store, policy)
    assert not allowed(lambda: s3.create_bucket(Bucket="another"))
    assert allowed(lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/"))
    assert allowed(lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix="intake/")) == (policy != "mlflow")
    s3.close()


@pytest.mark.parametrize("policy", ["training", "serving", "operator"])
def test_images_come_and_go(policy: str, compose_store: Store) -> None:
    with signed_in(compose_store, policy) as settings:
        intake = Intake(open_store(settings), settings)
        held = intake.hold(check_images([("a.png", picture())], settings))
        assert len(intake.open(held)) == 1
        assert intake.release(held) > 0
        assert intake.expire(0.0) == []


def picture() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 100).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_job_holds_its_lease_and_keeps_its_checkpoints(compose_store: Store) -> None:
    with signed_in(compose_store, "training") as settings:
        place = open_store(settings)
        with lease(place, "pets", ttl=5, holder="job") as held:
            held.check()
        path, filesystem = objects.training_storage(settings)
        checkpoint = f"{path}/pets/run/checkpoint"
        filesystem.create_dir(checkpoint)
        with filesystem.open_output_stream(f"{checkpoint}/state.safetensors") as file:
            file.write(b"x" * 12 * 2**20)  # more than one part
        (found,) = filesystem.get_file_info(fs.FileSelector(checkpoint))
        assert found.size == 12 * 2**20
        assert place.delete_prefix("training/pets/") > 0


def test_the_api_keeps_its_key_and_knows_what_is_missing(compose_store: Store) -> None:
    with signed_in(compose_store, "serving") as settings:
        place = open_store(settings)
        key = signing.load_key(place)
        assert signing.load_key(place) == key
        assert not place.exists("mlflow/1/run/artifacts/adapter/manifest.json"), "missing is missing, not forbidden"


def test_the_keeper_copies_out_and_in_all_that_lasts(compose_store: Store) -> None:
    with signed_in(compose_store, "keeper") as settings:
        place = open_store(settings)
        for folder in LASTING:
            key = f"{folder}kept"
            assert place.create(key, b"x")
            assert place.get(key) == b"x"
            assert key in place.list(folder)


def test_people_are_invited_by_an_operator_and_let_in_by_the_api(compose_store: Store) -> None:
    """The API needs no right to read who there are: their names are in the listing. It says who begins a lineage."""
    with signed_in(compose_store, "operator") as settings:
        token = People(open_store(settings)).invite("ada")
    with signed_in(compose_store, "serving") as settings:
        people = People(open_store(settings))
        assert Door(people).admit(token).name == "ada"
        people.claim("ada", "pets")
        with pytest.raises(ForbiddenError):
            people.claim("bob", "pets")
        assert Door(people).admit(token).right("pets") == "owner"
        with pytest.raises(UnavailableError):
            people.invite("eve", admin=True)
    with signed_in(compose_store, "operator") as settings:
        People(open_store(settings)).dismiss("ada")
