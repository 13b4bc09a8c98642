"""Both kinds of object store, on a real directory and a real S3 server; what S3 alone has, at the end."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.errors import InputError, NotFoundError, RefusedError, TooLargeError, UnavailableError
from services.objects import ObjectStore, S3Store, check_key, open_store, open_store_at, read_folder
from services.settings import Settings
from tests.house import wait_until
from tests.ports import free_ports
from tests.proxy import Proxy
from tests.s3 import S3Server

BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "\ud800",
    "a%2e%2e",
    "a#b",
    "a?b",
    ".tmp/x",
    "x" * 256,
    "/".join(["x" * 200] * 5),
]


def test_an_object_is_what_was_put_last(store: ObjectStore) -> None:
    store.put("a/b", b"old")
    store.put("a/b", b"\0new")
    assert store.get("a/b") == b"\0new"
    assert store.exists("a/b")


def test_what_was_not_written_for_long_is_told_apart(store: ObjectStore) -> None:
    for key in ("a/old", "a/renewed", "b/other"):
        store.put(key, b"old")
    moment = time.time()
    assert list(store.older("a/", moment - 3600)) == []
    assert list(store.older("a/", moment + 3600)) == ["a/old", "a/renewed"]
    wait_until(lambda: time.time() > moment + 2)  # S3 tells whole seconds
    store.put("a/renewed", b"new")
    assert list(store.older("a/", moment + 1)) == ["a/old"]
    assert list(store.older("c/", moment)) == []


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert list(store.list()) == ["empty"]


def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    store.put("folder/x", b"x")
    for key in ("nothing", "folder", "folder/y"):
        with pytest.raises(NotFoundError, match=key):
            store.get(key)
        assert not store.exists(key)


@pytest.mark.parametrize("key", ["späße/猫.png", "a b/c d", "a+b=c&d", "UPPER.lower_-~!()'*", "..a/b..", "x" * 255])
def test_keys_of_all_kinds(store: ObjectStore, key: str) -> None:
    store.put(key, b"data")
    assert store.get(key) == b"data"
    assert list(store.list()) == [key]
    assert store.key_of(store.uri(key)) == key
    store.delete(key)
    assert not store.exists(key)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused_everywhere(tmp_path: Path, key: str) -> None:
    store = open_store_at(str(tmp_path))
    with pytest.raises(InputError, match="cannot be an object key"):
        check_key(key)
    for act in (store.get, store.exists, store.delete, store.uri):
        with pytest.raises(InputError):
            act(key)
    for write in (store.put, store.create):
        with pytest.raises(InputError):
            write(key, b"")
    assert not list(tmp_path.iterdir())


def test_listing_is_by_prefix_and_sorted(store: ObjectStore) -> None:
    keys = ["a", "b/1", "b/10", "b/2", "b-c", "b/d/e", "c/1"]
    for key in keys:
        store.put(key, b"")
    assert list(store.list()) == sorted(keys)
    assert list(store.list("b")) == ["b-c", "b/1", "b/10", "b/2", "b/d/e"]
    assert list(store.list("b/")) == ["b/1", "b/10", "b/2", "b/d/e"]
    assert list(store.list("b/1")) == ["b/1", "b/10"]
    assert list(store.list("nothing/")) == []
    for prefix in ("../", "a//", "/"):
        with pytest.raises(InputError):
            store.list(prefix)


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b/c", b"")
    store.put("a/d", b"")
    store.delete("a/b/c")
    store.delete("a/b/c")
    store.delete("never/was")
    store.delete("a")  # a folder is no object
    assert list(store.list()) == ["a/d"]


def test_delete_prefix_takes_a_folder_and_nothing_else(store: ObjectStore) -> None:
    for key in ("runs/1/a", "runs/1/b/c", "runs/10/a", "runs/1x"):
        store.put(key, b"")
    with pytest.raises(InputError, match="slash"):
        store.delete_prefix("runs/1")
    with pytest.raises(InputError):
        store.delete_prefix("")
    assert store.delete_prefix("runs/1/") == 2
    assert store.delete_prefix("runs/1/") == 0
    assert list(store.list()) == ["runs/10/a", "runs/1x"]


def test_create_never_replaces(store: ObjectStore) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.get("a/b") == b"first"
    store.delete("a/b")
    assert store.create("a/b", b"third")


def test_of_many_creators_exactly_one_wins(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        for round_number in range(6):
            key = f"race/{round_number}"
            won = list(pool.map(lambda n, key=key: store.create(key, b"%d" % n), range(8)))
            assert won.count(True) == 1
            assert store.get(key) == b"%d" % won.index(True)


def test_readers_never_see_half_an_object(store: ObjectStore) -> None:
    contents = [bytes([n]) * 300_000 for n in range(4)]
    store.put("x", contents[0])
    with ThreadPoolExecutor(2) as pool:
        writes = [pool.submit(store.put, "x", content) for content in contents * 3]
        while not all(write.done() for write in writes):
            assert store.get("x") in contents
        for write in writes:
            write.result()


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "/",
        "/a/../b",
        "/../x",
        "/a#b",
        "/a?b",
        "/%2e%2e/x",
        "/a%2fb",
        "//a",
        "/a/",
        "/.",
        "/a\\b",
        "x/a",
        "/.tmp/a",
    ],
)
def test_uris_that_are_not_inside_are_refused(store: ObjectStore, tail: str) -> None:
    with pytest.raises(RefusedError, match="not an object of the store"):
        store.key_of(store.root + tail)


@pytest.mark.parametrize(
    "uri",
    ["", "a/b", "/etc/passwd", "file:///etc/passwd", "http://host/x", "runs:/1/a", "s3://", "s3://other/x/a"],
)
def test_uris_of_elsewhere_are_refused(store: ObjectStore, uri: str) -> None:
    with pytest.raises(RefusedError):
        store.key_of(uri)


def test_another_scheme_or_bucket_with_the_same_rest_is_refused() -> None:
    store = open_store_at("s3://bucket/a", endpoint="http://127.0.0.1:1")
    assert store.key_of("s3://bucket/a/b/c") == "b/c"
    for uri in (
        "s3n://bucket/a/b",
        "S3://bucket/a/b",
        "s3://bucket2/a/b",
        "s3://u@bucket/a/b",
        "/bucket/a/b",
    ):
        with pytest.raises(RefusedError):
            store.key_of(uri)


@pytest.mark.parametrize("uri", ["", "http://host/x", "s3://", "s3://Bad_Bucket/x", "s3://a..b/x", "s3://b/../c", "/"])
def test_what_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(InputError):
        open_store_at(uri)


def test_the_settings_name_the_store(tmp_path: Path) -> None:
    assert open_store(Settings(home=tmp_path)).root == f"{tmp_path}/store"
    settings = Settings(store="s3://bucket/a/b/", s3_endpoint="http://127.0.0.1:1")
    assert open_store(settings).root == "s3://bucket/a/b"


# --- S3 -----------------------------------------------------------------------------------------------------


def test_listing_goes_on_past_a_page(s3: S3Server) -> None:
    store = open_store_at(f"s3://{s3.bucket}/pages", endpoint=s3.endpoint)
    keys = [f"many/{n:04d}" for n in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert list(store.list("many/")) == keys


def test_a_whole_bucket_can_be_a_store(s3: S3Server) -> None:
    s3.client().create_bucket(Bucket="whole")
    store = open_store_at("s3://whole", endpoint=s3.endpoint)
    store.put("a/b", b"x")
    assert store.uri("a/b") == "s3://whole/a/b"
    assert list(store.list()) == ["a/b"]


def test_a_retry_after_a_lost_answer_knows_its_own_object(s3: S3Server) -> None:
    with Proxy(s3.endpoint) as proxy:
        store = open_store_at(f"s3://{s3.bucket}/lost", endpoint=proxy.endpoint)
        proxy.lose_answers = 1
        assert store.create("mine", b"x")
        assert proxy.lose_answers == 0
        assert not store.create("mine", b"x")
        proxy.lose_answers = 1
        assert not store.create("mine", b"x")
        assert proxy.lose_answers == 0


def test_a_server_that_is_away_is_unavailable_until_it_is_back(s3: S3Server) -> None:
    with Proxy(s3.endpoint) as proxy:
        store = open_store_at(f"s3://{s3.bucket}/away", endpoint=proxy.endpoint)
        store.put("a", b"x")
        proxy.down()
        with pytest.raises(UnavailableError, match="does not answer"):
            store.get("a")
        proxy.up()
        assert store.get("a") == b"x"


def test_nobody_listens(s3: S3Server) -> None:
    store = open_store_at(f"s3://{s3.bucket}/x", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1") as caught:
        list(store.list())
    assert "\n" not in caught.value.message


def test_a_missing_bucket_is_said(s3: S3Server) -> None:
    with pytest.raises(UnavailableError, match="no bucket nobody-made-it"):
        list(open_store_at("s3://nobody-made-it", endpoint=s3.endpoint).list())


def test_wrong_credentials_are_said_but_not_shown(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    store = open_store_at(f"s3://{s3.bucket}/x", endpoint=s3.endpoint)
    with pytest.raises(UnavailableError, match="check credentials") as caught:
        store.put("a", b"")
    assert "wrong-secret" not in str(caught.value)


def test_no_credentials_are_said(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="AWS_"):
        open_store_at(f"s3://{s3.bucket}/x", endpoint=s3.endpoint).get("a")


def test_a_reader_reads_and_is_told_that_it_may_not_write(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{s3.bucket}/readonly"
    open_store_at(uri, endpoint=s3.endpoint).put("a", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret_key)
    store = open_store_at(uri, endpoint=s3.endpoint)
    assert store.get("a") == b"x"
    for write in (store.put, store.create):
        with pytest.raises(UnavailableError, match="AccessDenied"):
            write("b", b"")
    with pytest.raises(UnavailableError):
        store.delete("a")
    assert list(store.list()) == ["a"]


@pytest.mark.parametrize("endpoint", ["http://user:secret@host", "host:9000", "ftp://host", "http://"])
def test_an_endpoint_is_a_plain_url(endpoint: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store_at("s3://bucket/x", endpoint=endpoint)
    assert "secret" not in str(caught.value)


@pytest.fixture
def folder(s3: S3Server) -> S3Server:
    """s3://pictures/cats with two files, a hidden one and a folder."""
    client = s3.client()
    if "pictures" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket="pictures")
        for key in ("cats/b.png", "cats/a.png", "cats/.hidden", "cats/deeper/c.png", "catsup/d.png"):
            client.put_object(Bucket="pictures", Key=key, Body=key.encode())
    return s3


def test_a_users_folder_is_read(folder: S3Server) -> None:
    for uri in ("s3://pictures/cats", "s3://pictures/cats/"):
        files = read_folder(uri, endpoint=folder.endpoint, max_files=2, max_bytes=10)
        assert files == [("a.png", b"cats/a.png"), ("b.png", b"cats/b.png")]
    assert read_folder("s3://pictures", endpoint=folder.endpoint, max_files=2, max_bytes=10) == []


def test_a_users_folder_has_limits(folder: S3Server) -> None:
    with pytest.raises(TooLargeError, match="More than 1 files"):
        read_folder("s3://pictures/cats", endpoint=folder.endpoint, max_files=1, max_bytes=10)
    with pytest.raises(TooLargeError, match=r"a\.png.*larger than 9 bytes"):
        read_folder("s3://pictures/cats", endpoint=folder.endpoint, max_files=2, max_bytes=9)
    source = S3Store("pictures", "cats", endpoint=folder.endpoint)
    with pytest.raises(TooLargeError):  # grown since it was listed
        source.read("a.png", max_bytes=9)


@pytest.mark.parametrize("uri", ["s3://nobody-made-it/x", "s3://", "s3://pictures/../palimpsest", "s3://pictures//x"])
def test_a_users_folder_that_is_not_there_is_the_users_error(folder: S3Server, uri: str) -> None:
    with pytest.raises(InputError):
        read_folder(uri, endpoint=folder.endpoint, max_files=2, max_bytes=10)
