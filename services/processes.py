"""Background processes of the local stack: each in a session of its own, stopped by what was written down of it."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

STOP_SECONDS = 20


@dataclass(frozen=True)
class Process:
    """A process id and when that process began: an id alone may be somebody else's by now."""

    pid: int
    began: float

    def running(self) -> bool:
        """Whether exactly this process still runs."""
        try:
            process = psutil.Process(self.pid)
            return bool(abs(process.create_time() - self.began) < 1 and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def start(name: str, command: Sequence[str], environment: Mapping[str, str], *, folder: Path, logs: Path) -> Process:
    """Start a process in the background; its output goes to `logs/<name>.log`, its id to `folder/<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    output = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    child = os.posix_spawn(
        command[0],
        list(command),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(logs / f"{name}.log"), output, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    process = Process(child, psutil.Process(child).create_time())
    (folder / f"{name}.json").write_text(json.dumps(asdict(process)))
    return process


def find(name: str, *, folder: Path) -> Process | None:
    """The process that `start` wrote down, if it still runs."""
    try:
        process = Process(**json.loads((folder / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return process if process.running() else None


def stop(name: str, *, folder: Path) -> bool:
    """Stop a process and everything it started: ask, wait, then kill. False if it did not run."""
    process = find(name, folder=folder)
    if process is not None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        os.kill(process.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for member in left:
            with suppress(psutil.NoSuchProcess):  # it may go with its parent, just killed
                member.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)
    (folder / f"{name}.json").unlink(missing_ok=True)
    return process is not None
