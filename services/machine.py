"""What the figures were measured on, and how much of it somebody else used meanwhile."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy")
_IDLE = {"idle", "iowait", "guest", "guest_nice"}  # a guest's time is in its host's, too


def describe() -> dict[str, object]:
    """The machine and what runs on it."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def sentence(told: Mapping[str, object], before: float, after: float) -> str:
    """What `describe` told, and the load before and after, for people; without a full stop."""
    libraries = ", ".join(f"{name} {told[name]}" for name in ("torch", "diffusers", "peft"))
    load = f"load {before:.1f} before and {after:.1f} after"
    return f"{told['cpu']}, {told['threads']} threads, Python {told['python']}, {libraries}; {load}"


def revision() -> str:
    """The commit of the source that runs, with `+` where it was changed since; the version where it is no checkout."""
    git, source = shutil.which("git"), Path(__file__).parents[1]
    if git is None or not (source / ".git").exists():
        return version("palimpsest")
    ask = (git, "-C", str(source), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    told = subprocess.run(ask, capture_output=True, text=True, check=False)
    return told.stdout.strip() or version("palimpsest")


def load() -> tuple[float, float, float]:
    """Of the last 1, 5 and 15 minutes."""
    one, five, fifteen = psutil.getloadavg()
    return one, five, fifteen


class Others:
    """Share of the machine's CPU time that other processes take, from now on."""

    def __init__(self) -> None:
        self._begun, self._busy, self._own = time.monotonic(), _busy(), _own()

    def share(self) -> float:
        """0 if nobody else did anything, 1 if they had every core all the time; stolen time is theirs."""
        room = (time.monotonic() - self._begun) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (_busy() - self._busy - (_own() - self._own)) / room))


def _busy() -> float:
    """CPU seconds of all processes so far."""
    times: dict[str, float] = psutil.cpu_times()._asdict()
    return sum(seconds for kind, seconds in times.items() if kind not in _IDLE)


def _own() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _cpu() -> str:
    """The processor's name, as Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
