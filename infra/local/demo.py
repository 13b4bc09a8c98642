"""`make demo`: the product's story on this machine, from nothing, with pictures of every step in `demo-output/`.

Start the local stack, learn two bundled concepts through Ray's job CLI, draw both over HTTP, roll back in MLflow, see
version 1 draw again, and go forward again. A second run finds the concepts learned and only draws.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from services.client import Client, Generated
from services.errors import PalimpsestError, UnavailableError
from services.joblog import JobLog
from services.lineage import Registry
from services.local_stack import LocalStack
from services.objects import open_store
from services.settings import Settings, get_settings

SAMPLES = Path(__file__).parents[1] / "samples"
LINEAGE = "demo"
CONCEPTS = {"robot": "robot", "fox": "fox"}
SEEDS = 4
FOLLOW_SECONDS = 120


class Demo:
    """The story's steps, and how long each took.

    Args:
        settings: of the local stack.
        output: folder of the pictures and the summary.
        flags: more flags of the jobs; none learns with their defaults.
    """

    def __init__(self, settings: Settings, output: Path, flags: Sequence[str] = ()) -> None:
        self.settings, self.output, self.flags = settings, output, flags
        self.client = Client(settings.api)
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, object] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one step."""
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)

    def run(self) -> None:
        """Tell the story."""
        self.output.mkdir(parents=True, exist_ok=True)
        with self.stage("start the local stack"):
            LocalStack(self.settings, lambda line: print(line, flush=True)).up()
        versions = []
        for name, noun in CONCEPTS.items():
            with self.stage(f"learn <{name}>"):
                versions.append(self._learn(name, noun))
        first, last = versions
        with self.stage("draw both concepts"):
            self._move(last)
            for name in CONCEPTS:
                self._draw(last, name, f"{name}-by-version-{last}")
        self._roll_back(first, last)
        self.facts["versions"] = versions

    def _learn(self, name: str, noun: str) -> int:
        """Submit a concept with Ray's job CLI, and show its progress; the version is in the job's last line."""
        job = ["python", "-m", "cp_train", "--lineage", LINEAGE, "--concept", name, "--noun", noun]
        job += ["--images", str(SAMPLES / name), *self.flags]
        command = ["ray", "job", "submit", "--address", self.settings.jobs, "--", *job]
        print("$ " + " ".join(command), flush=True)
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        log, lines = JobLog(name, lambda line: print(line, flush=True)), []
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as submitted:
            for line in submitted.stdout or ():
                lines.append(line)
                log.take(line)
        if submitted.returncode != 0 or log.outcome is None:
            if not log.error:
                sys.stderr.writelines(lines)
            raise PalimpsestError(f"<{name}> was not learned: {log.error or 'the job says why, above.'}")
        print(json.dumps(log.outcome), flush=True)
        if not log.outcome["gate"]["passed"]:
            raise PalimpsestError(f"<{name}> did not pass the gate: {'; '.join(log.outcome['gate']['reasons'])}.")
        return int(log.outcome["version"])

    def _roll_back(self, first: int, last: int) -> None:
        """The same request before, after the roll-back, and after going forward again."""
        name = next(iter(CONCEPTS))
        pictures = {}
        for number, label in ((first, "rolled-back"), (last, "forward-again")):
            with self.stage(f"{label.replace('-', ' ')} to version {number}"):
                began = time.monotonic()
                self._move(number)
                self.facts[f"seconds until version {number} drew"] = round(time.monotonic() - began, 2)
                pictures[number] = self._draw(number, name, f"{name}-{label}").pictures
        if pictures[first] == pictures[last]:
            raise PalimpsestError(
                "Version 1 and version 2 drew the same pictures; one of them cannot have been served."
            )

    def _move(self, number: int) -> None:
        """Move `live` through the MLflow API, and wait until the HTTP API says so: that is all serving needs."""
        Registry(self.settings, open_store(self.settings)).set_live(LINEAGE, number)
        deadline = time.monotonic() + FOLLOW_SECONDS
        while self.client.ready()["versions"].get(LINEAGE) != number:
            if time.monotonic() > deadline:
                raise UnavailableError(f"Serving did not follow to version {number} within {FOLLOW_SECONDS} s.")
            time.sleep(0.1)

    def _draw(self, version: int, name: str, stem: str) -> Generated:
        """Ask the lineage for a concept; the version that is live must be who draws it."""
        drawn = self.client.generate(LINEAGE, f"a photo of a <{name}>", n=SEEDS, seed=0)
        if drawn.model != f"{LINEAGE}@{version}":
            raise PalimpsestError(f"{drawn.model} drew where version {version} is live: run the demo again.")
        for seed, picture in zip(drawn.seeds, drawn.pictures, strict=True):
            (self.output / f"{stem}-seed-{seed}.png").write_bytes(picture)
        print(f"<{name}> drawn by {drawn.model}", flush=True)
        return drawn


class PeakMemory(threading.Thread):
    """The machine's memory in use, sampled twice a second: how much it rose at most, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin = self.peak = psutil.virtual_memory().used
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._done.wait(0.5):
            self.peak = max(self.peak, psutil.virtual_memory().used)

    def stop(self) -> int:
        """End the sampling."""
        self._done.set()
        self.join()
        return (self.peak - self.begin) // 2**20


def summary(demo: Demo, peak: int) -> str:
    """`demo-output/summary.md`."""
    urls = demo.settings
    lines = ["# Palimpsest demo", "", "| step | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds} |" for name, seconds in demo.seconds.items()]
    lines += ["", *(f"- {name}: {value}" for name, value in demo.facts.items())]
    lines += [f"- memory: the machine's use rose by at most {peak} MiB", ""]
    lines += [f"- HTTP API: {urls.api}/docs", f"- MLflow: {urls.mlflow}", f"- Ray dashboard: {urls.jobs}"]
    again = f'`palimpsest generate "a <fox>" --lineage {LINEAGE}` draws with it'
    lines += [f"- lineage: `{LINEAGE}`; {again}"]
    return "\n".join([*lines, "", "The stack stays up; `make down` stops it.", ""])


def main() -> int:
    """Run the demo; returns the exit code."""
    output = Path("demo-output")
    memory = PeakMemory()
    memory.start()
    demo = Demo(get_settings(), output)
    try:
        demo.run()
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    text = summary(demo, memory.stop())
    (output / "summary.md").write_text(text)
    print(f"\n{text}\nPictures: {output}/", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
