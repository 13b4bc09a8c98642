"""`python -m cp_serve.bench -o DIR`: `results.json`, `summary.md` and plots."""

import argparse
import json
from pathlib import Path

from cp_serve.bench.report import plot, summary
from cp_serve.bench.run import Config, measure
from services.base_model import use_threads


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m cp_serve.bench", description="Serving against plain diffusers.")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    for name, default in vars(Config()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    values = vars(parser.parse_args())
    out, threads = values.pop("out"), values.pop("threads")
    use_threads(threads)
    results = measure(Config(**values), print)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "summary.md").write_text(summary(results))
    plot(results, out)
    print(summary(results))


if __name__ == "__main__":
    main()
