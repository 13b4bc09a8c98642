"""Concept images: how they are collected, held, opened again, and that they go away."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from services.errors import (
    InputError,
    NotFoundError,
    RefusedError,
    TooLargeError,
    UnavailableError,
    UnsupportedImageError,
)
from services.images import CheckedImage, check_images
from services.intake import Intake, collect
from services.objects import ObjectStore, open_store_at
from services.settings import Settings
from tests.proxy import Proxy
from tests.s3 import S3Server
from tests.services.pictures import SETTINGS, check_one, encode, picture, png_of
from tests.services.test_directory_store import disk_of

DAY = 86400.0


# --- held, opened, released, expired ---


@pytest.fixture
def intake(store: ObjectStore) -> Intake:
    return Intake(store, SETTINGS)


def checked(*seeds: int) -> list[CheckedImage]:
    return check_images([(f"{seed}.png", encode(picture(seed))) for seed in seeds], SETTINGS)


def test_what_is_held_is_what_is_opened(intake: Intake, store: ObjectStore) -> None:
    name = intake.hold(checked(1, 2, 3))
    images = intake.open(name)
    assert [image.mode for image in images] == ["RGB"] * 3
    for seed, image in zip((1, 2, 3), images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(picture(seed)))
    assert list(store.list()) == [f"intake/{name}/{n}" for n in ("00.png", "01.png", "02.png", "manifest.json")]


def test_the_digest_is_of_the_pixels_alone(intake: Intake) -> None:
    one = intake.hold(checked(1, 2))
    files = [("x", encode(picture(2), "WEBP", lossless=True)), ("y", encode(picture(1), compress_level=9))]
    other = intake.hold(check_images(files, SETTINGS))
    assert one != other
    assert intake.digest(one) == intake.digest(other)
    assert intake.digest(one) != intake.digest(intake.hold(checked(1)))
    turned = picture(1).resize((40, 48))
    assert check_one(encode(turned)).digest != check_one(encode(picture(1))).digest


def test_release_leaves_nothing_of_it_and_everything_else(intake: Intake, store: ObjectStore) -> None:
    name, other = intake.hold(checked(1, 2)), intake.hold(checked(3))
    assert intake.release(name) == 2
    assert intake.release(name) == 0
    assert list(store.list()) == [f"intake/{other}/00.png", f"intake/{other}/manifest.json"]
    for act in (intake.open, intake.digest):
        with pytest.raises(NotFoundError, match="submit them again"):
            act(name)


@pytest.mark.parametrize("name", ["", "in-", "in-" + "A" * 32, "in-" + "0" * 33, "../x", "in-" + "0" * 31 + "/"])
def test_an_intake_id_is_checked(intake: Intake, name: str) -> None:
    for act in (intake.open, intake.digest, intake.release):
        with pytest.raises(InputError, match="not an intake id"):
            act(name)


def test_what_is_half_written_or_half_released_is_not_read(intake: Intake, store: ObjectStore) -> None:
    name = intake.hold(checked(1, 2))
    store.delete(f"intake/{name}/00.png")
    with pytest.raises(NotFoundError, match="not held"):
        intake.open(name)
    store.delete(f"intake/{name}/manifest.json")
    with pytest.raises(NotFoundError):
        intake.open(name)
    assert intake.release(name) == 1


@pytest.mark.parametrize(
    ("part", "data"),
    [
        ("00.png", encode(picture(9))),
        ("00.png", b"rubbish"),
        ("00.png", png_of(60_000, 60_000)),
        ("manifest.json", b"rubbish"),
        ("manifest.json", b"[]"),
        ("manifest.json", b'{"count": 1, "digest": "0"}'),
    ],
)
def test_what_was_changed_in_the_store_is_refused(intake: Intake, store: ObjectStore, part: str, data: bytes) -> None:
    name = intake.hold(checked(1, 2))
    store.put(f"intake/{name}/{part}", data)
    with pytest.raises(RefusedError, match="again"):
        intake.open(name)


def test_what_is_old_expires(intake: Intake, store: ObjectStore) -> None:
    name = intake.hold(checked(1, 2))
    now = time.time()
    assert intake.expire(now) == []
    assert intake.expire(now + 6.9 * DAY) == []
    assert intake.expire(now - 1000 * DAY) == []  # a clock that was set back
    intake.open(name)
    assert intake.expire(now + 7.1 * DAY) == [name]
    assert list(store.list()) == []


def test_the_young_and_the_foreign_stay(intake: Intake, store: ObjectStore) -> None:
    old, young = intake.hold(checked(1)), intake.hold(checked(2))
    key = f"intake/{old}/manifest.json"
    store.put(key, json.dumps(json.loads(store.get(key)) | {"created": time.time() - 8 * DAY}).encode())
    store.put("intake/notes.txt", b"")
    store.put("intake/in-x/00.png", b"")
    store.put("adapters/1", b"")
    assert intake.expire(time.time()) == [old]
    intake.open(young)
    assert len(list(store.list())) == 5


@pytest.mark.parametrize("manifest", [None, b"rubbish", b'{"created": NaN}', b'{"created": "x"}', b"[]"])
def test_half_written_intakes_are_marked_then_deleted(
    intake: Intake, store: ObjectStore, manifest: bytes | None
) -> None:
    name = "in-" + "0" * 32
    store.put(f"intake/{name}/00.png", b"x")
    if manifest is not None:
        store.put(f"intake/{name}/manifest.json", manifest)
    assert intake.expire(1e9) == []
    assert intake.expire(1e9 - DAY) == []
    assert intake.expire(1e9 + 3500) == []  # an upload may still be under way
    assert intake.expire(1e9 + 3700) == [name]
    assert list(store.list()) == []


def test_a_hold_that_fails_cleans_up(s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/failing-hold"
    with Proxy(s3.endpoint) as proxy:
        intake = Intake(open_store_at(uri, endpoint=proxy.endpoint), SETTINGS)
        proxy.down()
        with pytest.raises(UnavailableError):
            intake.hold(checked(1))
    assert list(open_store_at(uri, endpoint=s3.endpoint).list()) == []


def test_a_hold_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    store = open_store_at(str(tmp_path / "store"))
    small, large = check_one(encode(picture())), check_one(encode(picture(size=(200, 200))))
    with disk_of(50_000), pytest.raises(UnavailableError, match="free space"):
        Intake(store, SETTINGS).hold([small, large])
    assert list(store.list()) == []
    assert not list((tmp_path / "store" / ".tmp").iterdir())


# --- collected from the user's place ---


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    (folder / "b.png").write_bytes(encode(picture(2)))
    (folder / "a.JPG").write_bytes(encode(picture(1), "JPEG"))
    (folder / ".DS_Store").write_bytes(b"rubbish")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "c.png").write_bytes(b"rubbish")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return SETTINGS.model_copy(update={"home": tmp_path / "home"})


def test_a_directory_is_read_by_name(album: Path, settings: Settings) -> None:
    files = collect(str(album), settings)
    assert files == [(name, (album / name).read_bytes()) for name in ("a.JPG", "b.png")]
    assert collect(f"{album}/", settings) == files


def test_the_originals_are_never_touched(album: Path, settings: Settings, store: ObjectStore) -> None:
    before = {path: path.read_bytes() for path in album.rglob("*") if path.is_file()}
    intake = Intake(store, settings)
    intake.release(intake.hold(check_images(collect(str(album), settings), settings)))
    intake.hold(check_images(collect(str(album), settings), settings))
    intake.expire(time.time() + 8 * DAY)
    assert {path: path.read_bytes() for path in album.rglob("*") if path.is_file()} == before


def test_links_are_followed_inside_only(album: Path, settings: Settings, tmp_path: Path) -> None:
    (album / "c.png").symlink_to("b.png")
    assert [name for name, _ in collect(str(album), settings)] == ["a.JPG", "b.png", "c.png"]
    (tmp_path / "outside.png").write_bytes(encode(picture(3)))
    (album / "d.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(InputError, match=r"'d\.png' is a link out of the directory"):
        collect(str(album), settings)


def test_broken_links_are_said(album: Path, settings: Settings) -> None:
    (album / "c.png").symlink_to("nothing")
    with pytest.raises(InputError, match=r"'c\.png' cannot be read"):
        collect(str(album), settings)
    (album / "c.png").unlink()
    (album / "c.png").symlink_to("c.png")
    with pytest.raises(InputError, match=r"'c\.png' cannot be read"):
        collect(str(album), settings)


def test_a_pipe_does_not_hang(album: Path, settings: Settings) -> None:
    os.mkfifo(album / "pipe")
    with pytest.raises(InputError, match="'pipe' is not a regular file"):
        collect(str(album), settings)


def test_what_is_no_picture_is_named(album: Path, settings: Settings) -> None:
    (album / "notes.txt").write_text("hello")
    with pytest.raises(UnsupportedImageError, match=r"'notes\.txt' is not a PNG") as caught:
        collect(str(album), settings)
    assert str(album) not in str(caught.value)


def test_large_files_are_not_read(album: Path, settings: Settings) -> None:
    with (album / "big.png").open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing
    with pytest.raises(TooLargeError, match=r"'big\.png' is larger"):
        collect(str(album), settings)


def test_too_many_files_are_not_read(tmp_path: Path, settings: Settings) -> None:
    for number in range(settings.max_images + 1):
        (tmp_path / f"{number}.png").symlink_to("/nowhere")  # reading any would be another error
    with pytest.raises(TooLargeError, match="more than 5 images"):
        collect(str(tmp_path), settings)


@pytest.mark.parametrize("uri", ["http://169.254.169.254/x", "file:///etc", "ftp://x", "", "  ", "a\0b", "gs://b/x"])
def test_what_else_there_is_is_refused_with_what_is_accepted(uri: str, settings: Settings) -> None:
    with pytest.raises(InputError, match=r"a directory, s3://bucket/prefix or an intake id"):
        collect(uri, settings)


def test_a_missing_directory_a_file_and_an_empty_one(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"^'{tmp_path}/nothing' cannot be read"):
        collect(str(tmp_path / "nothing"), settings)
    with pytest.raises(InputError, match=f"^'{tmp_path}/file' cannot be read"):
        collect(str(tmp_path / "file"), settings)
    with pytest.raises(InputError, match=f"^There are no files in '{tmp_path}/empty'"):
        collect(str(tmp_path / "empty"), settings)


def test_other_peoples_images_in_our_store_cannot_be_collected(
    tmp_path: Path, settings: Settings, s3: S3Server
) -> None:
    name = Intake(open_store_at(settings.store_uri), settings).hold(checked(1))
    (tmp_path / "link").symlink_to(settings.store_uri)
    for root in (settings.store_uri, f"{tmp_path}/link", f"{tmp_path}/x/../home/store"):
        for below in ("", "/intake", f"/intake/{name}"):
            with pytest.raises(InputError, match="none of them"):
                collect(root + below, settings)
    remote = settings.model_copy(update={"store": f"s3://{s3.bucket}/own", "s3_endpoint": s3.endpoint})
    name = Intake(open_store_at(remote.store_uri, endpoint=s3.endpoint), remote).hold(checked(1))
    for below in (
        "",
        "/",
        f"/intake/{name}",
        f"/intake/{name}/",
        f"//intake/{name}",
        f"/../own/intake/{name}",
    ):
        with pytest.raises(InputError):
            collect(f"s3://{s3.bucket}/own{below}", remote)


def test_a_bucket_is_read(s3: S3Server, settings: Settings) -> None:
    settings = settings.model_copy(update={"s3_endpoint": s3.endpoint})
    client = s3.client()
    client.create_bucket(Bucket="album")
    for key in ("cats/b.png", "cats/a.png"):
        client.put_object(Bucket="album", Key=key, Body=encode(picture(len(key))))
    client.put_object(Bucket="album", Key="notes/n.txt", Body=b"hello")
    client.put_object(Bucket="album", Key="big/x.png", Body=bytes(200_001))
    assert [name for name, _ in collect("s3://album/cats", settings)] == ["a.png", "b.png"]
    with pytest.raises(UnsupportedImageError, match=r"'n\.txt'"):
        collect("s3://album/notes/", settings)
    with pytest.raises(TooLargeError, match=r"'x\.png'"):
        collect("s3://album/big", settings)
    for uri in ("s3://album/none", "s3://album", "s3://no-such-bucket/x", "s3://"):
        with pytest.raises(InputError):
            collect(uri, settings)
    assert len(client.list_objects_v2(Bucket="album")["Contents"]) == 4
