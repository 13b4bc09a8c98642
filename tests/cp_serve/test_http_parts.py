"""The parts of the HTTP side that need no replica: signatures, kept pictures, kept answers, the janitor, webhooks."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature
from PIL import Image

from cp_serve.idempotency import FOLDER, MAX_LENGTH, Answers
from cp_serve.janitor import sweep
from cp_serve.pictures import Pictures, encode
from cp_serve.routes.hooks import signed, told_of
from cp_serve.signing import Signer, load_key
from services.errors import ConflictError, InputError, NotFoundError, UnavailableError
from services.objects import ObjectStore

DAY = 86400.0


@pytest.fixture
def signer(store: ObjectStore) -> Signer:
    return Signer(load_key(store))


@pytest.fixture
def answers(store: ObjectStore, signer: Signer) -> Answers:
    return Answers(store, signer, seconds=DAY, patience=60)


def pictures(store: ObjectStore, signer: Signer, seconds: float = DAY) -> Pictures:
    return Pictures(store, signer, url="https://example.org", seconds=seconds)


def parts(link: str) -> tuple[str, str]:
    url = urlsplit(link)
    return url.path.rpartition("/")[2], parse_qs(url.query)["signature"][0]


def test_all_who_ask_at_once_get_one_key(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: load_key(store), range(16)))
    assert len(keys) == 1
    assert len(keys.pop()) == 32


def test_a_signature_is_for_one_purpose_and_one_text(signer: Signer) -> None:
    signature = signer.sign("pictures", "a", 1)
    assert signer.verify(signature, "pictures", "a", 1)
    for purpose, *texts in (("request", "a", 1), ("pictures", "a", 2), ("pictures", "a"), ("pictures", "\ud800")):
        assert not signer.verify(signature, str(purpose), *texts)
    assert not signer.verify("ü", "pictures", "a", 1)
    assert not Signer(b"another").verify(signature, "pictures", "a", 1)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_link_leads_to_the_file(store: ObjectStore, signer: Signer, output_format: str) -> None:
    file = encode(np.full((16, 24, 3), 200, np.uint8), output_format)
    assert Image.open(BytesIO(file)).size == (24, 16)
    link = pictures(store, signer).keep(file, output_format)
    assert link.startswith("https://example.org/v1/pictures/")
    kept = pictures(store, signer).open(*parts(link))
    assert (kept.data, kept.media_type) == (file, f"image/{output_format}")
    assert kept.etag == f'"{hashlib.sha256(file).hexdigest()}"'
    assert DAY - 60 < kept.expires - time.time() <= DAY


def test_a_link_that_was_changed_or_has_expired_leads_nowhere(store: ObjectStore, signer: Signer) -> None:
    name, signature = parts(pictures(store, signer).keep(b"file", "png"))
    later = f"{int(name.partition('-')[0]) + 1}-{name.partition('-')[2]}"
    forged = "0" * len(signature)
    for wrong in (
        (later, signature),
        (name, forged),
        (name, ""),
        ("../secrets/http", signature),
        (name + "x", signature),
    ):
        with pytest.raises(NotFoundError, match="no such picture, or its link has expired"):
            pictures(store, signer).open(*wrong)
    with pytest.raises(NotFoundError):
        pictures(store, signer).open(*parts(pictures(store, signer, seconds=-2).keep(b"file", "png")))


def test_the_janitor_deletes_what_is_overdue_and_nothing_else(
    store: ObjectStore, signer: Signer, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, kept = pictures(store, signer, seconds=10), pictures(store, signer)
    gone, stays = parts(short.keep(b"one", "png")), parts(kept.keep(b"two", "png"))
    store.put("pictures/somebody-elses", b"file")
    answers.claim("key", "request")
    answers.keep("key", "request", {"a": 1})
    now = time.time() + 60
    monkeypatch.setattr(store, "get", None)  # it reads nothing
    sweep({"pictures": kept.expire, "answers": answers.expire}, now)
    monkeypatch.undo()
    assert kept.open(*stays).data == b"two"
    with pytest.raises(NotFoundError):
        short.open(*gone)
    assert list(store.list(f"{FOLDER}/")) == [f"{FOLDER}/{signer.sign('idempotency', '', 'key')}.json"]
    assert set(store.list("pictures/")) == {f"pictures/{stays[0]}", "pictures/somebody-elses"}
    store.put(f"{FOLDER}/broken.json", b"{")
    sweep({"answers": answers.expire}, now + DAY)
    assert list(store.list(f"{FOLDER}/")) == []


def test_an_outage_of_one_thing_does_not_keep_the_janitor_from_the_others() -> None:
    swept = []

    def down(_: float) -> int:
        raise UnavailableError("down")

    sweep({"pictures": down, "answers": lambda now: swept.append(now) or 1}, 5.0)  # type: ignore[func-returns-value]
    assert swept == [5.0]


def test_what_is_sent_again_gets_the_answer_that_it_had(answers: Answers) -> None:
    assert answers.claim("key", "request") is None
    answers.keep("key", "request", {"created": 1, "data": ["ü"]})
    for _ in range(2):
        assert answers.claim("key", "request") == {"created": 1, "data": ["ü"]}
    with pytest.raises(InputError, match="used for another request") as error:
        answers.claim("key", "another request")
    assert error.value.param == "Idempotency-Key"
    assert answers.claim("another key", "another request") is None


def test_of_many_at_once_one_begins(answers: Answers) -> None:
    started = threading.Barrier(8)

    def claim(_: int) -> str:
        started.wait()
        try:
            return "begins" if answers.claim("key", "request") is None else "has an answer"
        except ConflictError as error:
            return f"waits {error.retry_after} s"

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(claim, range(8)))
    assert found == ["begins", *["waits 1 s"] * 7]


def test_what_failed_may_be_tried_again_and_so_may_what_nobody_ends(store: ObjectStore, signer: Signer) -> None:
    hasty = Answers(store, signer, seconds=DAY, patience=-1)
    assert hasty.claim("key", "request") is None
    assert hasty.claim("key", "request") is None, "whoever claimed it is long dead"
    patient = Answers(store, signer, seconds=DAY, patience=60)
    assert patient.claim("key", "request") is None
    patient.give_up("key")
    assert patient.claim("key", "another request") is None


def test_an_answer_is_kept_no_longer_than_what_it_leads_to(store: ObjectStore, signer: Signer) -> None:
    answers = Answers(store, signer, seconds=60, patience=60)
    answers.claim("key", "request")
    answers.keep("key", "request", {"url": "link"}, seconds=-1)
    assert answers.claim("key", "request") is None


def test_a_kept_answer_is_forgotten_after_its_time(store: ObjectStore, signer: Signer) -> None:
    answers = Answers(store, signer, seconds=-1, patience=60)
    answers.claim("key", "request")
    answers.keep("key", "request", {"a": 1})
    assert answers.claim("key", "another request") is None


@pytest.mark.parametrize("key", ["", "x" * (MAX_LENGTH + 1), "a\nb"])
def test_not_everything_is_a_key(answers: Answers, key: str) -> None:
    with pytest.raises(InputError, match="printable"):
        answers.claim(key, "request")


def test_neither_key_nor_request_can_be_read_from_the_record(store: ObjectStore, answers: Answers) -> None:
    answers.claim("my-key", "a secret prompt")
    for name in store.list(f"{FOLDER}/"):
        assert "my-key" not in name
        assert b"secret" not in store.get(name)


def deliver(secret: str, body: str, *, sent: float, signed_body: str = "") -> Callable[[str, str], str]:
    """Headers of a delivery, signed by MLflow's own code."""
    headers = {"x-mlflow-delivery-id": "d-1", "x-mlflow-timestamp": str(int(sent))}
    signature = _generate_hmac_signature(secret, "d-1", headers["x-mlflow-timestamp"], signed_body or body)
    return (headers | {"x-mlflow-signature": signature}).get  # type: ignore[return-value]


def test_mlflows_own_signature_is_taken_and_no_other() -> None:
    now, body = 1_800_000_000.0, '{"entity": "ü"}'
    assert signed("secret", deliver("secret", body, sent=now), body.encode(), now)
    assert signed("secret", deliver("secret", body, sent=now), body.encode(), now + 200)
    refusals = {
        "another secret": deliver("other", body, sent=now),
        "another body": deliver("secret", body, sent=now, signed_body="{}"),
        "too old": deliver("secret", body, sent=now - 400),
        "from the future": deliver("secret", body, sent=now + 400),
        "no headers": {}.get,
        "no time": {"x-mlflow-timestamp": "²", "x-mlflow-signature": "v1,ü"}.get,
    }
    for why, headers in refusals.items():
        assert not signed("secret", headers, body.encode(), now), why  # type: ignore[arg-type]


def test_what_a_delivery_tells_of() -> None:
    data = {"name": "pets", "alias": "live", "version": "7"}
    event = {
        "entity": "model_version_alias",
        "action": "created",
        "timestamp": "2026-01-02T03:04:05+00:00",
        "data": data,
    }
    told = told_of(json.dumps(event).encode())
    assert told == ("pets", "live", 7, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    gone = {name: value for name, value in data.items() if name != "version"}
    wrong: list[object] = [[], 7, {}, event | {"data": gone}, event | {"timestamp": "now"}, event | {"data": None}]
    wrong += [event | {"timestamp": "2026-01-02T03:04:05"}, event | {"data": data | {"name": "../x"}}]
    assert [told_of(json.dumps(other).encode()) for other in wrong] == [None] * len(wrong)
    assert told_of(b"\xff") is None
