"""Signatures with this installation's own key: links to pictures, and digests of what a client said.

The key is made once and kept in the store, so that every replica of the ingress signs alike and a restart invalidates
no link. HMAC-SHA256 (RFC 2104) throughout.
"""

import hashlib
import hmac
import secrets

from services.objects import ObjectStore

KEY = "secrets/http"
_BYTES = 32


def load_key(store: ObjectStore) -> bytes:
    """The installation's key; made by whoever asks first.

    Raises:
        UnavailableError: the store does not answer.
    """
    if not store.exists(KEY):
        store.create(KEY, secrets.token_bytes(_BYTES))
    return store.get(KEY)


class Signer:
    """Signs short texts with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, purpose: str, *parts: object) -> str:
        """64 hex digits over a purpose and some parts; what was signed for one purpose is worth nothing for another."""
        lines = "\n".join([purpose, *map(str, parts)])
        return hmac.new(self._key, lines.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()

    def verify(self, signature: str, purpose: str, *parts: object) -> bool:
        """Whether `sign` gave that signature."""
        return hmac.compare_digest(signature.encode(), self.sign(purpose, *parts).encode())
