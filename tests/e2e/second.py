"""A second application on a house's cluster, with settings of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from services.local_stack import ray_environment
from tests.house import House

NAME = "second"
_PREFIX = f"/{NAME}"
_SCRIPT = f"""
import sys
import ray
from ray import serve
from cp_serve.app import application
from services.settings import Settings
settings = Settings()
ray.init(address=f"{{settings.host}}:{{settings.ray_port}}", log_to_driver=False, logging_level="warning")
if sys.argv[1] == "up":
    serve.run(application(settings), name="{NAME}", route_prefix="{_PREFIX}")
else:
    serve.delete("{NAME}")
"""


@contextmanager
def second_application(house: House, **settings: object) -> Iterator[str]:
    """Its URL, for the body of a `with`; settings that are not given are the house's."""
    changed = {f"PALIMPSEST_{name.upper()}": str(value) for name, value in settings.items()}

    def run(what: str) -> None:
        environment = ray_environment(house.settings) | changed
        command = [sys.executable, "-c", _SCRIPT, what]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("up")
    try:
        yield f"{house.settings.api}{_PREFIX}"
    finally:
        run("down")
