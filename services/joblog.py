"""What a person wants to see of a job's log: its own lines, without what Ray says around them."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FROM = re.compile(r"^\(\w+ pid=\d+[^)]*\) ")
_STEP = re.compile(r"step (\d+)/(\d+)(?:  loss (\S+))?(?:.*  ETA (\d+) s)?")


@dataclass(frozen=True)
class Progress:
    """How far a training is: steps done and to do, the loss, and seconds to go, where the job said so."""

    step: int
    steps: int
    loss: float | None
    eta_seconds: float | None


class JobLog:
    """Takes a job's log piece by piece and says the lines that concern one concept.

    Args:
        concept: its name.
        say: called with each line.

    Attributes:
        error: what the job said is wrong; empty so far.
        model: `lineage@number` of the version that came out; empty so far.
        outcome: the job's last line, as it is in JSON; None so far.
        progress: of the training; None so far.
    """

    def __init__(self, concept: str, say: Callable[[str], None]) -> None:
        self._mark, self._say, self._rest = f"<{concept}> ", say, ""
        self.error = self.model = ""
        self.outcome: dict[str, Any] | None = None
        self.progress: Progress | None = None

    def take(self, piece: str) -> None:
        """A piece of the log; it may end in the middle of a line."""
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._line(_FROM.sub("", _COLOUR.sub("", line)).strip())

    def _line(self, line: str) -> None:
        if line.startswith("error: "):
            self.error = line.removeprefix("error: ")
        elif line.startswith('{"lineage"'):
            self.outcome = outcome = json.loads(line)
            self.model = f"{outcome['lineage']}@{outcome['version']}{'' if outcome['live'] else ' (a candidate)'}"
        elif line.startswith(self._mark) or " palimpsest." in line:
            if found := _STEP.match(line.removeprefix(self._mark)):
                self.progress = _progress(*found.groups())
            self._say(line)


def _progress(step: str, steps: str, loss: str | None, eta: str | None) -> Progress:
    try:
        shown = float(loss) if loss else math.nan
    except ValueError:
        shown = math.nan
    return Progress(int(step), int(steps), shown if math.isfinite(shown) else None, float(eta) if eta else None)
