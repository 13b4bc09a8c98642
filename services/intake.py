"""Concept images: collected, held in the store until their version is published, then gone.

Only our copies are ever deleted, never the user's originals.
"""

import json
import logging
import math
import os
import re
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from PIL import Image

from services.errors import InputError, NotFoundError, PalimpsestError, RefusedError
from services.images import (
    CheckedImage,
    base_name,
    check_images,
    digest_of_all,
    looks_like_picture,
    reopen,
    too_many,
    too_many_bytes,
    unsupported,
)
from services.images import digest as image_digest
from services.objects import ObjectStore, read_folder
from services.settings import Settings

__all__ = ["CheckedImage", "Intake", "check_images", "collect"]

_PARAM = "images"
_ACCEPTED = "a directory, s3://bucket/prefix or an intake id (in-…)"
_ORPHAN_SECONDS = 3600.0  # longer than any upload takes
_ID = re.compile(r"in-[0-9a-f]{32}")

_log = logging.getLogger("palimpsest.intake")


class Intake:
    """Images on their way into a version, in the store under `intake/<id>/`.

    The manifest is written last and deleted last, so what is half-written is never read, and what is
    half-deleted is found again.
    """

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self._store = store
        self._ttl = settings.intake_ttl_days * 86400

    def hold(self, images: Sequence[CheckedImage]) -> str:
        """Write the images and return their intake id. If that fails, what was written is deleted.

        Raises:
            UnavailableError: the store cannot be written.
        """
        intake_id = f"in-{uuid4().hex}"
        manifest = {
            "count": len(images),
            "digest": digest_of_all([image.digest for image in images]),
            "created": time.time(),
        }
        try:
            for number, image in enumerate(images):
                self._store.put(_image_key(intake_id, number), image.png)
            self._store.put(_key(intake_id, "manifest.json"), json.dumps(manifest).encode())
        except BaseException:  # a stopped job, too
            with suppress(PalimpsestError):  # otherwise `expire` does it
                self.release(intake_id)
            raise
        return intake_id

    def open(self, intake_id: str) -> list[Image.Image]:
        """The images, as RGB.

        Raises:
            InputError: not an intake id.
            NotFoundError: they are not (or no longer) held.
            RefusedError: they are not what was held.
            UnavailableError: the store does not answer.
        """
        count, digest = self._manifest(intake_id)
        try:
            images = [reopen(self._store.get(_image_key(intake_id, number))) for number in range(count)]
        except NotFoundError:
            raise _gone(intake_id) from None  # a release is under way
        if digest_of_all([image_digest(image) for image in images]) != digest:
            raise _changed(intake_id)
        return images

    def digest(self, intake_id: str) -> str:
        """Digest of the pictures: the same for the same pixels in another order or file format.

        Raises:
            InputError: not an intake id.
            NotFoundError: they are not (or no longer) held.
            RefusedError: the manifest is not what was written.
            UnavailableError: the store does not answer.
        """
        return self._manifest(intake_id)[1]

    def release(self, intake_id: str) -> int:
        """Delete the images, then the manifest, and return how many images there were; 0 the next time.

        Raises:
            InputError: not an intake id.
            UnavailableError: the store does not answer; some may be left, so call again.
        """
        keys = sorted(self._store.list(f"{_key(intake_id)}/"), key=_deletion_order)
        for key in keys:
            self._store.delete(key)
        return sum(key.endswith(".png") for key in keys)

    def expire(self, now: float) -> list[str]:
        """Delete what is older than the time-to-live at `now` (seconds since 1970); return the ids.

        What has no manifest (an upload that died, or is still under way) is marked when it is first seen, and
        deleted by a call at least an hour later. What was made after `now` (the clock was set back) is kept.

        Raises:
            UnavailableError: the store does not answer.
        """
        ids = dict.fromkeys(key.split("/")[1] for key in self._store.list("intake/"))
        gone = [name for name in ids if _ID.fullmatch(name) and self._is_over(name, now)]
        for intake_id in gone:
            count = self.release(intake_id)
            _log.info("intake %s expired: %d images deleted", intake_id, count)
        return gone

    def overdue(self, now: float) -> list[str]:
        """Ids of what is held past its time-to-live at `now`; nothing is deleted.

        Raises:
            UnavailableError: the store does not answer.
        """
        ids = dict.fromkeys(key.split("/")[1] for key in self._store.list("intake/"))
        return [i for i in ids if _ID.fullmatch(i) and now - self._time(_key(i, "manifest.json")) > self._ttl]

    def _is_over(self, intake_id: str, now: float) -> bool:
        made = self._time(_key(intake_id, "manifest.json"))
        if math.isfinite(made):
            return now - made > self._ttl
        seen = self._time(_key(intake_id, "seen.json"))
        if math.isfinite(seen):
            return now - seen > _ORPHAN_SECONDS
        self._store.put(_key(intake_id, "seen.json"), json.dumps({"created": now}).encode())
        return False

    def _time(self, key: str) -> float:
        try:
            return float(json.loads(self._store.get(key))["created"])
        except (NotFoundError, ValueError, TypeError, LookupError, OverflowError):
            return math.nan

    def _manifest(self, intake_id: str) -> tuple[int, str]:
        """Count and digest."""
        try:
            data = self._store.get(_key(intake_id, "manifest.json"))
        except NotFoundError:
            raise _gone(intake_id) from None
        try:
            manifest = json.loads(data)
            return int(manifest["count"]), str(manifest["digest"])
        except (ValueError, TypeError, LookupError, OverflowError):
            raise _changed(intake_id) from None


def _key(intake_id: str, *names: str) -> str:
    if not _ID.fullmatch(intake_id):
        raise InputError(f"{intake_id[:80]!r} is not an intake id (in-… of 32 digits).", param=_PARAM)
    return "/".join(("intake", intake_id, *names))


def _image_key(intake_id: str, number: int) -> str:
    return _key(intake_id, f"{number:02d}.png")


def _deletion_order(key: str) -> tuple[bool, bool]:
    return key.endswith(".json"), key.endswith("/manifest.json")


def _gone(intake_id: str) -> NotFoundError:
    return NotFoundError(
        f"{intake_id} is not held: its images were used, given up or never complete; submit them again.",
        param=_PARAM,
    )


def _changed(intake_id: str) -> RefusedError:
    return RefusedError(f"{intake_id} is not what was held: submit the images again.", param=_PARAM)


def collect(uri: str, settings: Settings) -> list[tuple[str, bytes]]:
    """Read the user's images, as (name, bytes) by name, from a directory or `s3://bucket/prefix`.

    Only files directly in it count, hidden ones aside. A directory is read with the rights of this process:
    never pass one that came over the network.

    Raises:
        InputError: nothing of the kind is there, or it may not be read.
        TooLargeError: too many files or too large ones, decided before they are read.
        UnsupportedImageError: something there is not a picture.
        UnavailableError: S3 does not answer.
    """
    remote = uri.startswith("s3://")
    if not uri.isprintable() or not uri.strip() or ("://" in uri and not remote) or _is_ours(uri, settings):
        raise InputError(f"Images come from {_ACCEPTED}; this is none of them.", param=_PARAM)
    files = _read_s3(uri, settings) if remote else _read_directory(uri, settings)
    if not files:
        raise InputError(f"There are no files in {uri!r}: images come from {_ACCEPTED}.", param=_PARAM)
    return files


def _is_ours(uri: str, settings: Settings) -> bool:
    """Whether it is inside our own store, where other people's images are."""
    ours = settings.store_uri
    if ours.startswith("s3://") or uri.startswith("s3://"):
        return f"{uri.rstrip('/')}/".startswith(f"{ours}/")
    return Path(os.path.realpath(uri)).is_relative_to(os.path.realpath(ours.removeprefix("file://")))


def _read_s3(uri: str, settings: Settings) -> list[tuple[str, bytes]]:
    files = read_folder(
        uri,
        endpoint=settings.s3_endpoint,
        max_files=settings.max_images,
        max_bytes=settings.max_image_bytes,
    )
    for name, data in files:
        _check_kind(name, data)
    return files


def _read_directory(uri: str, settings: Settings) -> list[tuple[str, bytes]]:
    root = Path(os.path.realpath(uri))
    names = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and not entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                if len(names) > settings.max_images:
                    raise too_many(settings)
    except OSError as error:
        raise InputError(
            f"{uri!r} cannot be read ({error.strerror}): images come from {_ACCEPTED}.",
            param=_PARAM,
        ) from error
    return [(name, read_image(root, name, settings)) for name in sorted(names)]


def read_image(root: Path, name: str, settings: Settings) -> bytes:
    """Read one image file in a directory.

    Raises:
        InputError: it is a link out of the directory, no regular file, or cannot be read.
        TooLargeError: more bytes than one image may have.
    """
    path = Path(os.path.realpath(root / name))
    shown = base_name(name)
    if not path.is_relative_to(root):
        raise InputError(f"{shown!r} is a link out of the directory: put the file itself there.", param=_PARAM)
    try:
        # Not blocking on a pipe, not following a link that appeared meanwhile.
        flags = os.O_NONBLOCK | os.O_NOFOLLOW
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{shown!r} is not a regular file: take it away.", param=_PARAM)
            if found.st_size > settings.max_image_bytes:
                raise too_many_bytes(shown, settings)
            data = file.read(settings.max_image_bytes + 1)
    except OSError as error:
        raise InputError(f"{shown!r} cannot be read ({error.strerror}).", param=_PARAM) from error
    _check_kind(name, data)
    return data


def _check_kind(name: str, data: bytes) -> None:
    if data and not looks_like_picture(data):
        raise unsupported(base_name(name))
