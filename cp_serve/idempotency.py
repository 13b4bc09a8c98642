"""`Idempotency-Key`: a request that is sent again is answered again, and not carried out again.

Whoever comes first with a key claims it in the store (one conditional write, so it holds for all replicas of the
ingress and over a restart), and leaves the answer there. The record is `answers/<digest of the key>.json` with the
digest of the request; neither the key nor the request can be read from it. The same key of two people is two keys. A
claim whose holder died is given up after `patience`; what failed is not kept, so that it can be tried again. Two who
find a dead holder's claim at the same moment may both carry it out: to the same pictures, for what is left to chance
follows from the key (`seed`), and to the same job, whose id does.
(After the IETF's draft draft-ietf-httpapi-idempotency-key-header: 422 for another request under a used key, 409 while
the first is under way.)
"""

import json
import math
import time
from typing import Any

from cp_serve.signing import Signer
from services.errors import ConflictError, InputError, NotFoundError
from services.objects import ObjectStore

FOLDER = "answers"
HEADER = "Idempotency-Key"
MAX_LENGTH = 255
_Record = dict[str, Any]


class Answers:
    """Answers by key.

    Args:
        store: where they are kept.
        signer: makes digests that say nothing of what was digested.
        seconds: how long an answer is kept.
        patience: seconds that a request may take; an older claim without an answer is nobody's.
    """

    def __init__(self, store: ObjectStore, signer: Signer, *, seconds: float, patience: float) -> None:
        self._store, self._signer, self._seconds, self._patience = store, signer, seconds, patience

    def claim(self, key: str, request: str, *, person: str = "") -> Any:
        """Begin a request under a key: None if it is to be carried out now, else the answer that it had.

        Args:
            key: the header's value.
            request: what is asked for, as one text.
            person: who asks; empty where nobody has to say.

        Raises:
            InputError: no such key can be, or it was used for another request.
            ConflictError: that request is under way.
            UnavailableError: the store does not answer.
        """
        if not 0 < len(key) <= MAX_LENGTH or not key.isprintable():
            raise InputError(f"{HEADER}: give 1 to {MAX_LENGTH} printable characters.", param=HEADER)
        name, digest = self._name(key, person), self._signer.sign("request", request)
        while not self._store.create(name, _record(digest, time.time() + self._patience)):
            record = self._read(name)
            if record is None or record["expires"] < time.time():
                self._store.delete(name)
            elif record["request"] != digest:
                raise InputError(f"{HEADER}: this key was used for another request; take a new one.", param=HEADER)
            elif record["answer"] is None:
                raise ConflictError("That request is under way; wait for its answer.", param=HEADER, retry_after=1)
            else:
                return record["answer"]
        return None

    def keep(self, key: str, request: str, answer: Any, *, person: str = "", seconds: float = math.inf) -> None:
        """Leave the answer (anything that JSON knows) of a claimed request, which holds for at most so many seconds."""
        expires = time.time() + min(seconds, self._seconds)
        self._store.put(self._name(key, person), _record(self._signer.sign("request", request), expires, answer))

    def seed(self, key: str, request: str, *, person: str = "") -> int:
        """What decides a request's random draws: whenever the same is asked under the same key, the same."""
        return int(self._signer.sign("seed", person, key, request), 16)

    def give_up(self, key: str, *, person: str = "") -> None:
        """End a claim without an answer."""
        self._store.delete(self._name(key, person))

    def expire(self, now: float) -> int:
        """Delete what has been kept for as long as anything is at `now` (seconds since 1970); returns how many.

        It goes by the time of writing, and reads nothing: answers may have pictures in them.

        Raises:
            UnavailableError: the store does not answer.
        """
        gone = list(self._store.older(f"{FOLDER}/", now - max(self._seconds, self._patience)))
        for name in gone:
            self._store.delete(name)
        return len(gone)

    def _name(self, key: str, person: str) -> str:
        return f"{FOLDER}/{self._signer.sign('idempotency', person, key)}.json"

    def _read(self, name: str) -> _Record | None:
        """A record; None if there is none, or it is not one of ours."""
        try:
            record = json.loads(self._store.get(name))
            sound = isinstance(record["expires"], float) and record.keys() == {"expires", "request", "answer"}
        except (NotFoundError, ValueError, TypeError, LookupError):
            return None
        return record if sound else None


def _record(request: str, expires: float, answer: Any = None) -> bytes:
    return json.dumps({"expires": expires, "request": request, "answer": answer}).encode()
