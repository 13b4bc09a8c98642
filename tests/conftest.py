"""Fixtures of the whole house; each plugin starts one real outside system per session."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY, _ROOM = Path("/dev/shm"), 4 * 2**30

# Threads that spin for each other hold up what runs beside them; libgomp reads this when torch is imported, so not yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A server that shares a busy machine with other tests is not down because it is slow.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
# SQLite waits 40 ms for a disk at every commit, which was most of MLflow's time; memory need not be waited for.
if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None  # to be found out again

pytest_plugins = ["tests.s3", "tests.postgres", "tests.stack", "tests.lineages", "tests.bases"]

_SHARED = {
    "house": {"house", "far_house"},
    "servers": {"mlflow_server", "stack_settings", "postgres", "s3", "place"},
}
"""Name of a group of tests -> the fixtures that they share, the group that takes longest first."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say what stays in one process where there are several (`make test`), so that each server is started once.

    Tests that share servers do, and those of one file. Said here: xdist reads it before any other hook sees all items.
    """
    item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The largest groups come first: nobody waits for them at the end."""
    order = [*_SHARED]
    items.sort(key=lambda item: order.index(_group(item)) if _group(item) in order else len(order))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to go on where the groups are not heeded, as with a pytest that xdist does not know yet."""
    if getattr(session.config.option, "loadgroup", False):
        ungrouped = [item.nodeid for item in session.items if "@" not in item.nodeid.rpartition("]")[2]]
        if ungrouped:
            raise pytest.UsageError(f"pytest-xdist does not keep {ungrouped[0]} with its group: pin another pytest.")


def _group(item: pytest.Item) -> str:
    needed = set(getattr(item, "fixturenames", ()))
    shared = (group for group, fixtures in _SHARED.items() if fixtures & needed)
    return next(shared, item.nodeid.partition("::")[0])


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """What a test runs in this process may set the number of torch's threads; the next test has its own again."""
    import torch

    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
