"""Fixtures of the whole house; each plugin starts one real outside system per session."""

from collections.abc import Iterator

import pytest
import torch

pytest_plugins = ["tests.s3", "tests.postgres", "tests.stack", "tests.lineages", "tests.house", "tests.bases"]


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """What a test runs in this process may set the number of torch's threads; the next test has its own again."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
