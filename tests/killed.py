"""Processes that die of SIGKILL at a stage: right before, or right after, a call to the store or to MLflow.

A stage is `before` or `after`, and a pattern: of `put`, `create` or `delete` and a key, or of a call to MLflow and its
arguments.
"""

import os
import re
import signal
import warnings
from collections.abc import Callable
from typing import Any

from services.objects import DirectoryStore
from services.runs import Server


def killed(stage: str, work: Callable[[], object]) -> None:
    """Do some work in a process of its own that dies at a stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads that a fork leaves behind
        child = os.fork()
    if child == 0:
        try:
            _die_at(stage)
            work()
        finally:
            os._exit(17)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the stage `{stage}` was never reached"
    assert os.WTERMSIG(status) == signal.SIGKILL


def mortal(stage: str, call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    """A call that its process does not survive if its name, made of its arguments, is that of the stage."""
    when, _, what = stage.partition(" ")

    def called(*args: Any, **kwargs: Any) -> Any:
        reached = re.search(what, name(*args))
        if reached and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def _die_at(stage: str) -> None:
    for name in ("put", "create", "delete"):
        real = getattr(DirectoryStore, name)
        setattr(DirectoryStore, name, mortal(stage, real, lambda _, key, *_rest, name=name: f"{name} {key}"))
    once = Server.once
    Server.once = mortal(stage, once, lambda _, call, *args: " ".join(map(str, (call.__name__, *args))))  # type: ignore[method-assign]
