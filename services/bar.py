"""A training's progress for a person: on a terminal one line that is written over, elsewhere a line now and then."""

import re
from collections.abc import Mapping
from typing import Any, TextIO

_WIDTH = 30
_CLEAR = "\r\x1b[K"
_STEP = re.compile(r"<[^>]+> step \d+/\d+ ")


class Bar:
    """Shows a job's lines, and on a terminal a bar below them in place of those that count steps.

    Args:
        out: where to.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self._terminal, self._bar = out, out.isatty(), ""

    def say(self, line: str) -> None:
        """A line of the job's log."""
        if not (self._terminal and _STEP.match(line)):
            self._write(f"{_CLEAR if self._bar else ''}{line}\n{self._bar}")

    def show(self, progress: Mapping[str, Any]) -> None:
        """How far it is: `step`, `steps`, `loss` and `eta_seconds`, as in docs/http.md."""
        if self._terminal:
            self._bar = drawn(progress)
            self._write(f"{_CLEAR}{self._bar}")

    def end(self) -> None:
        """Leave the bar as it is, and go on below it."""
        if self._bar:
            self._write("\n")
            self._bar = ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def drawn(progress: Mapping[str, Any]) -> str:
    """The bar, its numbers, and the loss and the seconds to go where they are known."""
    step, steps, loss, eta = (progress[name] for name in ("step", "steps", "loss", "eta_seconds"))
    done = _WIDTH * step // steps
    known = ("" if loss is None else f"  loss {loss:.4f}") + ("" if eta is None else f"  ETA {eta:.0f} s")
    return f"[{'#' * done}{'.' * (_WIDTH - done)}] {step}/{steps}{known}"
