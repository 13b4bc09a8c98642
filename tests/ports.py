"""Ports for servers that tests start: nobody else takes one between its choice and its use, nor is anybody behind it.

They lie between those that Ray gives to its workers (10002 to 19999) and those that systems give to whoever asks for
any (from 32768), and each is locked for as long as this process lives: tests that run beside these get others.
"""

import fcntl
import os
import random
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

_OURS = range(20_000, 30_000)
_TRIES = 1000


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, all different."""
    ports: list[int] = []
    for port in random.sample(_OURS, _TRIES):
        if len(ports) == count:
            return ports
        if _claim(port):
            ports.append(port)
    raise RuntimeError("no free ports")


def free_row(count: int) -> int:
    """The first of some such ports in a row."""
    for first in random.sample(_OURS[:-count], _TRIES):
        if all(map(_claim, range(first, first + count))):
            return first
    raise RuntimeError("no free ports")


def _claim(port: int) -> bool:
    """Lock a port against other tests, and see that nobody has it."""
    folder = Path(tempfile.gettempdir()) / f"palimpsest-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)  # ends, and is let go, with this process
    with suppress(OSError), socket.socket() as probe:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        probe.bind(("127.0.0.1", port))
        return True
    os.close(lock)
    return False
