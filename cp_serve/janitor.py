"""Keeps the promise that nothing outlives its time: concept images, pictures behind links, kept answers.

Even if nobody ever submits another job or follows another link.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from services.errors import PalimpsestError

log = logging.getLogger("palimpsest.janitor")

SECONDS = 600.0
"""Between two rounds."""
Sweep = Callable[[float], int]
"""Deletes what is overdue at a time (seconds since 1970) and returns how many that was."""


def sweep(sweeps: Mapping[str, Sweep], now: float) -> None:
    """One round; what an outage of the store keeps is left to the next."""
    for what, expire in sweeps.items():
        try:
            count = expire(now)
        except PalimpsestError as error:
            log.warning("overdue %s are kept until the next look: %s", what, error.message)
        else:
            log.log(logging.INFO if count else logging.DEBUG, "deleted %d overdue %s", count, what)


def sweep_forever(sweeps: Mapping[str, Sweep]) -> None:
    """Start a thread that sweeps now and every ten minutes."""

    def run() -> None:
        while True:
            sweep(sweeps, time.time())
            time.sleep(SECONDS)

    threading.Thread(target=run, name="sweep", daemon=True).start()
