"""The command `palimpsest`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.arguments import DEFAULT_LINEAGE, Parser, lineage_flag
from services.bar import Bar
from services.client import Client
from services.errors import InputError, NotFoundError, PalimpsestError
from services.manifest import check_name, check_noun
from services.methods import METHODS
from services.operations_cli import BACKENDS, INSTALLATION, add_commands
from services.people_cli import PEOPLE, add_people
from services.settings import Settings, get_settings
from services.tree import draw_tree


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        settings = get_settings()
        _reach_backend(settings)
        options.run(options, settings)
    except PalimpsestError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _reach_backend(settings: Settings) -> None:
    """Put the backend's keys where the libraries that speak to it look for them."""
    if settings.backend != "embedded" or settings.auth != "off":
        from services.backends import backend_environment

        os.environ.update(backend_environment(settings))


def _parser() -> argparse.ArgumentParser:
    parser = Parser("palimpsest", description="One small adapter that learns concept after concept.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace, Settings], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    up = command("up", _up, "start the local stack: MLflow, Ray, the HTTP API")
    up.add_argument("--backend", choices=BACKENDS, help="where lineages are kept (default: as before, else embedded)")
    command("down", _down, "stop what `up` started")
    command("status", _status, "what of the local stack runs")

    learn = command("learn", _learn, "learn a concept from some images and show the progress")
    learn.add_argument("name", help="the concept's name; prompts write it <name>")
    learn.add_argument("images", nargs="+", type=Path, help="image files, or one directory")
    learn.add_argument("--noun", required=True, help="what it is, in a word or two: mug, dog")
    learn.add_argument("--method", help=f"learning method: {', '.join(METHODS)}")
    learn.add_argument("--steps", help="training steps")
    learn.add_argument("--follow", action=argparse.BooleanOptionalAction, default=True, help="show the job's log")

    generate = command("generate", _generate, "draw pictures into files")
    generate.add_argument("prompt")
    generate.add_argument("-n", type=int, default=1, help="how many (default: %(default)s)")
    generate.add_argument("--seed", type=int, help="of the first picture (default: drawn at random)")
    generate.add_argument("-o", "--output", type=Path, default=Path(), help="folder (default: here)")

    classify = command("classify", _classify, "say which of the learned concepts is in a picture")
    classify.add_argument("image", type=Path)
    classify.add_argument("--trials", type=int, help="noises that the scores are averaged over; more is surer")

    command("concepts", _concepts, "the concepts that the live version knows")
    command("versions", _versions, "the tree of versions")
    command("lineages", _lineages, "the lineages that you may draw with")
    for name, about in (("promote", "make a version live"), ("rollback", "go back to an older version")):
        move = command(name, _move, about)
        move.add_argument("version", type=int, nargs=None if name == "promote" else "?", help="number of a version")
        move.add_argument("--reason", default="", help="why")
    export = command("export", _export, "write a version for diffusers, ComfyUI and kohya's tools")
    export.add_argument("version", help="number of a version, or live")
    export.add_argument("-o", "--output", type=Path, default=Path("export"), help="folder (default: %(default)s)")

    add_commands(command)
    add_people(command)
    for name, sub in commands.choices.items():
        if name not in {"up", "down", "status", "lineages", *INSTALLATION, *PEOPLE}:
            extra = "[@version]" if name == "generate" else ""
            sub.add_argument("--lineage", default=DEFAULT_LINEAGE, metavar=f"L{extra}", help="default: %(default)s")
    return parser


def _up(options: argparse.Namespace, settings: Settings) -> None:
    from services.local_stack import LocalStack

    if options.backend:
        settings = Settings(backend=options.backend)
    LocalStack(settings, _say).up()
    for name, url in (("HTTP API", f"{settings.api}/docs"), ("MLflow", settings.mlflow), ("Ray", settings.jobs)):
        _say(f"{name:9} {url}")


def _down(_: argparse.Namespace, settings: Settings) -> None:
    from services.local_stack import LocalStack

    LocalStack(settings, _say).down()


def _status(_: argparse.Namespace, settings: Settings) -> None:
    from services.local_stack import LocalStack

    for name, state in LocalStack(settings, _say).status().items():
        _say(f"{name:9} {state}")


def _learn(options: argparse.Namespace, settings: Settings) -> None:
    check_name(options.name, "name")
    check_name(options.lineage, "lineage")
    check_noun(options.noun)
    client, name = _client(settings), options.name
    fields = {"name": name, "noun": options.noun, "method": options.method, "steps": options.steps}
    answer = client.learn(options.lineage, _files(options.images, settings), **fields)
    job_id = answer["job_id"]
    for finding in answer["findings"]:
        _say(f"note: {finding['message']}")
    _say(f"job {job_id}; it goes on if you leave, and `ray job stop --address {settings.jobs} {job_id}` stops it")
    if not options.follow:
        return
    job = _followed(client, job_id)
    if job["status"] != "succeeded":
        client.stop_job(job_id)  # it is over: this lets go of the pictures
        raise PalimpsestError(job["error"] or f"<{name}> was not learned; `ray job logs {job_id}` says why.")
    model, number, flag = f"{job['lineage']}@{job['version']}", job["version"], lineage_flag(job["lineage"])
    draw = f'palimpsest generate "a photo of a <{name}>"'
    if job["live"]:
        _say(f"learned: <{name}> is in {model}. Try: {draw}{flag}")
        return
    hint = f"Look at it: `{draw} --lineage {model}`; or make it live: `palimpsest promote {number}{flag}`."
    if reasons := _objections(client.lineage(job["lineage"]), number):
        raise PalimpsestError(f"<{name}> was learned as {model}, but not made live: {reasons}. {hint}")
    _say(f"learned: <{name}> is in {model}, which is not live. {hint}")


def _objections(tree: dict[str, Any], number: int) -> str:
    """Why the gate refused a version; empty if it did not."""
    refused = [info for info in tree["versions"] if info["number"] == number and not info["gate_passed"]]
    return "; ".join(refused[0]["gate_reasons"]) or "no reasons are given" if refused else ""


def _files(paths: Sequence[Path], settings: Settings) -> list[tuple[str, bytes]]:
    """The pictures that some paths name, checked here before they are sent."""
    from services.images import check_images
    from services.intake import collect, read_image

    files: list[tuple[str, bytes]] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{str(path)!r} cannot be read (No such file or directory).", param="images")
        if path.is_dir():
            files += collect(str(path), settings)
        else:
            files.append((path.name, read_image(path.absolute().parent, path.name, settings)))
    check_images(files, settings)
    return files


def _followed(client: Client, job_id: str) -> dict[str, Any]:
    """Show a job's lines and progress until it is over; how it ended."""
    bar = Bar(sys.stdout)
    try:
        for name, data in client.follow_job(job_id):
            if name == "job.log":
                bar.say(data["line"])
            elif name == "job.updated" and data["progress"]:
                bar.show(data["progress"])
            elif name == "job.finished":
                return data
    finally:
        bar.end()
    return client.job(job_id)


def _classify(options: argparse.Namespace, settings: Settings) -> None:
    found = _client(settings).classify(options.lineage, _files([options.image], settings)[0], trials=options.trials)
    for name, probability in sorted(found["probabilities"].items(), key=lambda item: -item[1]):
        _say(f"{probability:6.1%}  {name if name == 'none' else f'<{name}>'}")


def _generate(options: argparse.Namespace, settings: Settings) -> None:
    drawn = _client(settings).generate(options.lineage, options.prompt, n=options.n, seed=options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    for seed, picture in zip(drawn.seeds, drawn.pictures, strict=True):
        path = options.output / f"{drawn.model.replace('@', '-')}-{seed}.png"
        path.write_bytes(picture)
        _say(f"{path}  (drawn by {drawn.model})")


def _concepts(options: argparse.Namespace, settings: Settings) -> None:
    tree = _client(settings).lineage(options.lineage)
    live = [version for version in tree["versions"] if version["number"] == tree["live"]]
    for name in live[0]["concepts"] if live else []:
        _say(f"<{name}>")


def _versions(options: argparse.Namespace, settings: Settings) -> None:
    for line in draw_tree(_client(settings).lineage(options.lineage)["versions"]):
        _say(line)


def _lineages(_: argparse.Namespace, settings: Settings) -> None:
    models = _client(settings).models()
    for lineage in (model for model in models if "@" not in model and model != "base"):
        count = sum(model.startswith(f"{lineage}@") for model in models)
        _say(f"{lineage}  {count} version{'s' if count > 1 else ''}")


def _move(options: argparse.Namespace, settings: Settings) -> None:
    client = _client(settings)
    tree = client.lineage(options.lineage)
    version = options.version or _parent_of_live(tree)
    moved = client.set_live(options.lineage, version, options.reason)
    _say(f"{options.lineage}: live is version {moved['live']} (was {moved['previous'] or 'none'})")
    if reasons := _objections(tree, version):
        print(f"warning: version {version} did not pass its gate: {reasons}", file=sys.stderr)


def _parent_of_live(tree: dict[str, object]) -> int:
    versions: list[dict[str, int | None]] = tree["versions"]  # type: ignore[assignment]
    for version in versions:
        if version["number"] == tree["live"] and version["parent"] is not None:
            return version["parent"]
    raise NotFoundError("The live version has no parent to go back to; name a version.", param="version")


def _export(options: argparse.Namespace, settings: Settings) -> None:
    from services.lineage import Registry
    from services.objects import open_store

    registry = Registry(settings, open_store(settings))
    number = registry.resolve(options.lineage, options.version)

    from services.base_model import load_outline  # takes seconds: a version that there is not is refused before
    from services.export import export

    base = load_outline(settings.base)
    _, adapter = registry.fetch(options.lineage, number, layout=base.layout, base=base.ref)
    for path in export(adapter, base.layout, options.output):
        _say(str(path))


def _client(settings: Settings) -> Client:
    return Client(settings.public, settings.token)


def _say(line: str) -> None:
    print(line, flush=True)
