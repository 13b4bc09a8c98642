"""`python -m cp_serve.bench -o DIR`: `results.json`, `serving.md` and plots."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cp_serve.bench.report import plot, summary
from cp_serve.bench.run import Config, measure
from services.arguments import Parser
from services.base_model import use_threads
from services.documents import check_publishable, publish_part
from services.errors import PalimpsestError

_MEANINGS = {
    "base": "base model",
    "people": "who ask",
    "versions": "of adapters; everybody has one",
    "requests": "of a round, and at half load; 0: as many as fit --minutes",
    "minutes": "that all of it should take on an idle machine",
    "rounds": "at saturation",
    "steps": "of every picture",
    "rank": "of the adapters",
    "max_batch": "images drawn together, at most",
    "seed": "of everything drawn by lot",
}


def main() -> int:
    """Parse, measure, write."""
    try:
        values = vars(_parser().parse_args())
        out, threads, document = values.pop("out"), values.pop("threads"), values.pop("publish")
        config = Config(**values)
        if document:
            check_publishable(document)
        out.mkdir(parents=True, exist_ok=True)
        use_threads(threads)
        results = measure(config, partial(print, flush=True), partial(_write, out / "partial.json"))
    except PalimpsestError as error:
        print(error.message, file=sys.stderr)
        return 1
    _write(out / "results.json", results)
    text = summary(results, _command(config, threads))
    (out / "serving.md").write_text(text)
    plot(results, out)
    (out / "partial.json").unlink(missing_ok=True)
    if document:
        publish_part(out / "serving.md", document, "serving")
    print(text)
    return 0


def _command(config: Config, threads: int) -> list[str]:
    """What makes these figures again."""
    given = {name: value for name, value in vars(config).items() if value != vars(Config())[name]}
    given |= {"threads": threads} if threads else {}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["python", "-m", "cp_serve.bench", "-o", "DIR", *flags]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m cp_serve.bench", description="Serving against plain diffusers.")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="also put the section into this document")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    for name, default in vars(Config()).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"{_MEANINGS[name]} (default: %(default)s)")
    return parser


def _write(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
