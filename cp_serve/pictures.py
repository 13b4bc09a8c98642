"""Generated pictures as files: encoded, and kept for a while where a signed link leads to them.

A kept picture is `pictures/<expires>-<sha256>.<format>` in the store, `expires` in seconds since 1970: the name says
when it may go, so that sweeping reads nothing, and what it holds, so that its ETag costs nothing.
"""

import hashlib
import re
import time
from dataclasses import dataclass, field
from io import BytesIO
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cp_serve.signing import Signer
from services.errors import NotFoundError
from services.objects import ObjectStore

FOLDER = "pictures"
NAME = re.compile(r"(\d{1,12})-([0-9a-f]{64})\.(png|jpeg|webp)")
_QUALITY = 95


def encode(pixels_HWC: NDArray[np.uint8], output_format: str) -> bytes:
    """A picture, uint8 [H, W, 3], as a file: `png`, `jpeg` or `webp`."""
    buffer = BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, output_format.upper(), quality=_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class KeptPicture:
    """A file, its media type, its ETag, and seconds since 1970 until when it is kept."""

    data: bytes = field(repr=False)
    media_type: str
    etag: str
    expires: int


class Pictures:
    """Pictures behind signed, expiring links.

    Args:
        store: where they are kept.
        signer: signs the links.
        url: what the links begin with, without a trailing slash.
        seconds: how long they live.
    """

    def __init__(self, store: ObjectStore, signer: Signer, *, url: str, seconds: float) -> None:
        self._store, self._signer, self._url, self._seconds = store, signer, url, seconds

    def keep(self, data: bytes, output_format: str) -> str:
        """Keep a file and return its link.

        Raises:
            UnavailableError: the store cannot be written.
        """
        name = f"{int(time.time() + self._seconds)}-{hashlib.sha256(data).hexdigest()}.{output_format}"
        self._store.put(f"{FOLDER}/{name}", data)
        query = urlencode({"signature": self._signer.sign(FOLDER, name)})
        return f"{self._url}/v1/pictures/{name}?{query}"

    def open(self, name: str, signature: str) -> KeptPicture:
        """The file that a link leads to.

        Raises:
            NotFoundError: the link is not one of ours, or has expired.
            UnavailableError: the store does not answer.
        """
        found = NAME.fullmatch(name)
        if not found or not self._signer.verify(signature, FOLDER, name) or int(found[1]) < time.time():
            raise _gone()
        try:
            data = self._store.get(f"{FOLDER}/{name}")
        except NotFoundError:
            raise _gone() from None
        return KeptPicture(data, f"image/{found[3]}", f'"{found[2]}"', int(found[1]))

    def expire(self, now: float) -> int:
        """Delete what has expired at `now` (seconds since 1970); returns how many.

        Raises:
            UnavailableError: the store does not answer.
        """
        names = (key.removeprefix(f"{FOLDER}/") for key in self._store.list(f"{FOLDER}/"))
        gone = [name for name in names if (found := NAME.fullmatch(name)) and int(found[1]) < now]
        for name in gone:
            self._store.delete(f"{FOLDER}/{name}")
        return len(gone)


def _gone() -> NotFoundError:
    return NotFoundError("There is no such picture, or its link has expired; draw it again.", param="name")
