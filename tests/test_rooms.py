"""The house rules that no linter knows: who may import whom, and what no file may say."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("services", "cp_train", "cp_serve")
MAX_LINES = 400

ALONE = {
    "boto3": {"services/objects.py"},
    "botocore": {"services/objects.py"},
    "mlflow": {"services/runs.py", "services/registry_database.py"},
    "sqlalchemy": {"services/registry_database.py"},
    "ray.job_submission": {"services/jobs.py"},
}
"""Package -> the files that may speak to that outside system."""

_SLASH = "/"  # so that this file does not say what it forbids
FORBIDDEN = {
    "a path of somebody's machine": re.compile(rf"(?<![\w.{_SLASH}-]){_SLASH}(?:work|root){_SLASH}"),
    "a shared folder": re.compile(rf"(?:\.\.{_SLASH}|{_SLASH}work{_SLASH})shared\b"),
    "a package registry": re.compile(
        rf"https?:{_SLASH}{_SLASH}[^\s\"'<>)]*(?:"
        + "|".join(("py" + "pi", "registry" + r"\.npmjs", "py" + "thonhosted"))
        + ")"
    ),
}


def files() -> list[Path]:
    """Everything that is, or is about to be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in sorted(set(listed.split("\0")) - {""}) if (path := ROOT / name).is_file()]


FILES = files()
MODULES = [path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in ROOMS]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"import_module", "importlib.import_module"}:
            yield from (str(value.value) for value in node.args[:1] if isinstance(value, ast.Constant))


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def test_there_is_something_to_judge() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOMS)
    assert "services.errors.InputError" in set(imports(ROOT / "services" / "manifest.py"))
    assert within("mlflow.entities.Param", "mlflow")
    assert not within("mlflowish", "mlflow")


@pytest.mark.parametrize(
    ("room", "others"),
    [("services", ("cp_train", "cp_serve")), ("cp_train", ("cp_serve",)), ("cp_serve", ("cp_train",))],
)
def test_rooms_keep_apart(room: str, others: tuple[str, ...]) -> None:
    inside = [path for path in MODULES if path.relative_to(ROOT).parts[0] == room]
    found = [f"{name_of(p)}: {i}" for p in inside for i in imports(p) if any(within(i, other) for other in others)]
    assert not found


@pytest.mark.parametrize("package", ALONE)
def test_each_outside_system_is_spoken_to_in_one_place(package: str) -> None:
    speakers = {name_of(path) for path in MODULES if any(within(name, package) for name in imports(path))}
    assert speakers <= ALONE[package]


def test_no_module_of_the_product_imports_the_tests() -> None:
    assert not [name_of(path) for path in MODULES if any(within(name, "tests") for name in imports(path))]


def test_every_logger_is_below_the_one_that_is_configured() -> None:
    """Else its lines come without a time, not as JSON where that is asked for, and below a warning not at all."""
    calls = [node for path in MODULES for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
    named = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "logging.getLogger"]
    assert len(named) > len(ROOMS)
    assert not [name for name in named if not re.fullmatch(r"'palimpsest(\.[a-z]+)?'", name)]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    found = []
    for path in FILES:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # pictures and weights
        lines = enumerate(text.splitlines(), 1)
        found += [f"{name_of(path)}:{number}" for number, line in lines if FORBIDDEN[what].search(line)]
    assert not found


def test_what_is_forbidden_would_be_found() -> None:
    said = {
        "a path of somebody's machine": [f"{_SLASH}work{_SLASH}x", f"'{_SLASH}root{_SLASH}.cache'"],
        "a shared folder": [f"..{_SLASH}shared{_SLASH}METHOD.md"],
        "a package registry": [f"https:{_SLASH}{_SLASH}mirror.example{_SLASH}py" + f"pi{_SLASH}simple"],
    }
    for what, lines in said.items():
        assert all(FORBIDDEN[what].search(line) for line in lines)
    assert not FORBIDDEN["a path of somebody's machine"].search("models/work/x https://host/root/y")


def test_a_file_of_more_than_400_lines_is_two_files() -> None:
    long = [name_of(path) for path in FILES if path.suffix == ".py" and len(path.read_bytes().splitlines()) > MAX_LINES]
    assert not long
