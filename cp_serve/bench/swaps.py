"""`python -m cp_serve.bench.swaps -o DIR`: moves of `live` under load, on the stack that runs (`palimpsest up`).

Two versions of a lineage made for it take turns as `live`, moved in MLflow itself as its own pages do it. Measured are
the seconds from a move to the first picture, of one step, by the version it moved to, asked for when every replica of
the denoiser has followed, by polling alone and, where MLflow has a webhook of ours, with that too. And, while clients
draw without a pause and `live` flips all the time: how often replicas moved their pointers (of flips between two looks
at the registry they see the last), requests that failed, pictures that are not those of the version that the answer
names, and the denoiser's longest step and longest pause between two steps, beside those of as long a time in which the
clients draw and nothing flips. The lineage is deleted from MLflow at the end.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
import requests
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cp_serve.bench.publish import publish
from cp_serve.bench.run import some_adapter
from cp_serve.bench.systems import CONCEPT
from services import machine
from services.arguments import Parser
from services.base_model import BaseModel, load_base
from services.client import Client
from services.documents import check_publishable, publish_part
from services.errors import PalimpsestError
from services.lineage import LIVE, Registry
from services.objects import open_store
from services.runs import Server
from services.settings import Settings, get_settings
from services.webhook import NAME

_PROMPT, _SEED, _STEPS = f"a photo of a <{CONCEPT}>", 7, 10
_NEAR = 2
_LOOK = 0.1
"""Seconds between looks at the replicas' figures; each look is work for all of them."""
_ACTIVE = "ACTIVE"
_REMEMBERED = 65.0
"""Seconds; MLflow remembers its list of webhooks for 60."""
_SWAPS, _PAUSES, _STEPS_TAKEN = "palimpsest_swaps_total", "palimpsest_pause_seconds", "palimpsest_step_seconds"


@dataclass
class Load:
    """What came of a time under load.

    Attributes:
        drawn: pictures, of which `torn` were not those of the version named.
        failed: what requests that failed were told.
        seconds: that it took.
        pointer_moves: of each replica.
        longest: name of a histogram -> the least bound that no observation exceeds, in seconds.
    """

    drawn: int = 0
    torn: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    pointer_moves: list[int] = field(default_factory=list)
    longest: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "seconds": round(self.seconds, 1),
            "pointer_moves": self.pointer_moves,
            "drawn": self.drawn,
            "failed": len(self.failed),
            "failures": self.failed[:20],
            "torn": self.torn,
            "longest_pause_at_most": self.longest[_PAUSES],
            "longest_step_at_most": self.longest[_STEPS_TAKEN],
        }


def measure(settings: Settings, *, flips: int, moves: int, clients: int) -> dict[str, Any]:
    """All figures."""
    base, client = load_base(settings.base, device="cpu"), Client(settings.api)
    with _lineage(settings, base) as lineage:
        expected = {number: _draw(client, f"{lineage}@{number}") for number in (1, 2)}
        if _apart(expected[1], expected[2]) <= 2 * _NEAR:
            raise PalimpsestError("The two versions draw alike; nothing can be told from their pictures.")
        replicas = len(_swaps(settings))
        _begin_with(settings, client, lineage, 1)
        ours = _webhooks(settings)
        hinted = _first_pictures(settings, client, lineage, moves) if ours else []
        others = machine.Others()
        draw = partial(_draw_and_compare, client, lineage, expected)
        load = partial(_under_load, settings, draw, clients=clients)
        flipped = load(meanwhile=lambda: _flip(settings, client, lineage, flips))
        still = load(meanwhile=lambda: time.sleep(flipped.seconds))
        share = others.share()
        with _disabled(settings, ours):
            polled = _first_pictures(settings, client, lineage, moves)
    return {
        "moves": moves,
        "replicas": replicas,
        "first_picture_seconds_webhook": hinted,
        "first_picture_seconds_polling": polled,
        "flips": flips,
        "clients": clients,
        **flipped.figures(),
        "without_flips": still.figures(),
        "others_cpu": share,
        "machine": machine.describe(),
    }


def _webhooks(settings: Settings) -> list[str]:
    """Ids of ours that are at work."""
    server = Server(settings.mlflow)
    found = server.search(server.client.list_webhooks)
    return [hook.webhook_id for hook in found if hook.name == NAME and hook.status == _ACTIVE]


@contextmanager
def _disabled(settings: Settings, webhooks: list[str]) -> Iterator[None]:
    """Without these for a while."""
    server = Server(settings.mlflow)

    def put(status: str) -> None:
        for webhook in webhooks:
            server.ask(server.client.update_webhook, webhook, status=status)

    put("DISABLED")
    try:
        if webhooks:
            time.sleep(_REMEMBERED)
        yield
    finally:
        put(_ACTIVE)


@contextmanager
def _lineage(settings: Settings, base: BaseModel) -> Iterator[str]:
    """A lineage with two versions, for as long as it is needed."""
    registry, name = Registry(settings, open_store(settings)), f"bench-{uuid4().hex[:12]}"
    try:
        for number in (1, 2):
            publish(registry, name, some_adapter(base, 4, number), base.layout, base.ref)
        yield name
    finally:
        server = Server(settings.mlflow)
        server.ask(server.client.delete_registered_model, name)


def _draw(client: Client, model: str, *, steps: int = _STEPS) -> "_Pixels":
    return _pixels(client.generate(model, _PROMPT, seed=_SEED, steps=steps).pictures[0])


_Pixels = np.ndarray[Any, np.dtype[np.int16]]


def _pixels(file: bytes) -> _Pixels:
    return np.asarray(Image.open(BytesIO(file)), dtype=np.int16)


def _apart(one: _Pixels, other: _Pixels) -> int:
    return int(np.abs(one - other).max())


def _move(settings: Settings, lineage: str, number: int) -> None:
    server = Server(settings.mlflow)
    server.ask(server.client.set_registered_model_alias, lineage, LIVE, str(number))


def _first_pictures(settings: Settings, client: Client, lineage: str, moves: int) -> list[float]:
    """For each move, to either version in turn, the seconds to the first picture by it; sorted."""
    _begin_with(settings, client, lineage, 1)
    moved = (1 + number % 2 for number in range(1, moves + 1))
    return sorted(_seconds_to_first(settings, client, lineage, number) for number in moved)


def _seconds_to_first(settings: Settings, client: Client, lineage: str, number: int) -> float:
    """From before the alias is moved to the first picture by that version after all replicas have followed."""
    before, begun = _swaps(settings), time.monotonic()
    _move(settings, lineage, number)
    while any(count <= before.get(replica, 0.0) for replica, count in _swaps(settings).items()):
        time.sleep(_LOOK)
    _wait_for(client, lineage, number)
    return time.monotonic() - begun


def _begin_with(settings: Settings, client: Client, lineage: str, number: int) -> None:
    """Make a version live, if it is not, and wait until it draws."""
    _move(settings, lineage, number)
    _wait_for(client, lineage, number)


def _wait_for(client: Client, lineage: str, number: int) -> None:
    """Draw until that version does."""
    while True:
        try:
            if client.generate(lineage, _PROMPT, seed=_SEED, steps=1).model == f"{lineage}@{number}":
                return
        except PalimpsestError:  # it was never live before
            time.sleep(0.02)


def _swaps(settings: Settings) -> dict[str, float]:
    """How often each replica of the denoiser that is ready has followed a move."""
    return {sample.labels["replica"]: sample.value for sample in _samples(settings) if sample.name == _SWAPS}


def _samples(settings: Settings) -> Iterator[Sample]:
    """Everything that the ingress and all replicas count."""
    text = requests.get(f"{settings.api}/metrics", timeout=60).text
    for family in text_string_to_metric_families(text):
        yield from family.samples


def _draw_and_compare(client: Client, lineage: str, expected: dict[int, _Pixels]) -> bool:
    """Draw with the live version; whether the picture is the one of the version that the answer names."""
    found = client.generate(lineage, _PROMPT, seed=_SEED, steps=_STEPS)
    number = int(found.model.removeprefix(f"{lineage}@"))
    return _apart(_pixels(found.pictures[0]), expected[number]) <= _NEAR


def _under_load(settings: Settings, draw: Callable[[], bool], *, clients: int, meanwhile: Callable[[], None]) -> Load:
    """Have so many clients draw for as long as something else takes."""
    swaps, histograms, begun = _swaps(settings), _histograms(settings), time.monotonic()
    load, lock, done = Load(), threading.Lock(), threading.Event()

    def draw_on() -> None:
        while not done.is_set():
            try:
                whole = draw()
            except PalimpsestError as error:
                with lock:
                    load.failed.append(error.message)
                continue
            with lock:
                load.drawn, load.torn = load.drawn + 1, load.torn + (not whole)

    with ThreadPoolExecutor(clients) as pool:
        drawing = [pool.submit(draw_on) for _ in range(clients)]
        try:
            meanwhile()
        finally:
            done.set()
        for future in drawing:
            future.result()
    load.seconds = time.monotonic() - begun
    load.pointer_moves = [round(count - swaps.get(replica, 0.0)) for replica, count in _swaps(settings).items()]
    load.longest = {name: _most(histograms[name], after) for name, after in _histograms(settings).items()}
    return load


def _flip(settings: Settings, client: Client, lineage: str, flips: int) -> None:
    """Move `live` to either version in turn, without a pause, and wait until the last of them draws."""
    live = 1
    for flip in range(flips):
        live = 1 + flip % 2
        _move(settings, lineage, live)
    _wait_for(client, lineage, live)


def _histograms(settings: Settings) -> dict[str, dict[float, float]]:
    """Upper bound -> observations up to it, of pauses and steps of all replicas."""
    found: dict[str, dict[float, float]] = {_PAUSES: {}, _STEPS_TAKEN: {}}
    for sample in _samples(settings):
        name, bucket, _ = sample.name.rpartition("_bucket")
        if bucket and name in found:
            bound = float(sample.labels["le"])
            found[name][bound] = found[name].get(bound, 0.0) + sample.value
    return found


def _most(before: dict[float, float], after: dict[float, float]) -> float:
    """The least bound that no observation since `before` exceeds, in seconds; 0 if there was none."""
    since = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    total = since.get(float("inf"), 0.0)
    return min((bound for bound, count in since.items() if count == total), default=0.0) if total else 0.0


def _loads(results: dict[str, Any]) -> str:
    """Both times under load, side by side."""
    columns = {f"{results['flips']} flips": results, "no flips": results["without_flips"]}
    rows = {
        "seconds": "seconds",
        "pictures": "drawn",
        "requests that failed": "failed",
        "longest pause of the denoiser, s (bound of a histogram)": "longest_pause_at_most",
        "longest step of the denoiser, s (bound of a histogram)": "longest_step_at_most",
    }
    lines = [[meaning, *(f"{found[name]:g}" for found in columns.values())] for meaning, name in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [["", *columns], ["---"] * 3, *lines])


def summary(results: dict[str, Any]) -> str:
    """Markdown."""
    series = {
        "the webhook and polling": results["first_picture_seconds_webhook"],
        "polling alone": results["first_picture_seconds_polling"],
    }
    rows = [
        f"| {how} | {len(found)} | {median(found):.2f} | {max(found):.2f} |" for how, found in series.items() if found
    ]
    table = "\n".join(["| followed by | moves | median s | at most s |", "| --- | --- | --- | --- |", *rows])
    return f"""# Swaps under load

From a move of `live` in MLflow to the first picture, of one step, by the version it moved to, asked for when all
replicas of the denoiser have followed ({results["replicas"]} here), nobody else drawing:

{table}

{results["flips"]} flips while {results["clients"]} clients drew {results["drawn"]} pictures: {results["failed"]}
requests failed, {results["torn"]} pictures were not those of the version named. A replica moved its pointer at least
{min(results["pointer_moves"], default=0)} times: of flips between two looks at the registry it sees the last.

{_loads(results)}

Other processes, the stack's own among them, took {results["others_cpu"]:.0%} of the CPU.
"""


def main() -> int:
    """Parse, measure, write `swaps.json` and `swaps.md`."""
    parser = Parser(prog="python -m cp_serve.bench.swaps", description="Moves of `live` under load.")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="also put the section into this document")
    for name, default in {"flips": 500, "moves": 20, "clients": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    try:
        flags = parser.parse_args()
        if flags.publish:
            check_publishable(flags.publish)
        results = measure(get_settings(), flips=flags.flips, moves=flags.moves, clients=flags.clients)
    except PalimpsestError as error:
        print(error.message, file=sys.stderr)
        return 1
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "swaps.json").write_text(json.dumps(results, indent=2) + "\n")
    (flags.out / "swaps.md").write_text(summary(results))
    if flags.publish:
        publish_part(flags.out / "swaps.md", flags.publish, "swaps")
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
