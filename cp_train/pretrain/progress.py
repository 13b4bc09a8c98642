"""One line of progress with the time that remains, for people watching and for logs."""

import sys
import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Prints `what: step/steps, note, ETA` at most every `every` seconds, and once at the end."""

    what: str
    steps: int
    done: int = 0
    every: float = 10.0
    _start: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._first = self.done

    def update(self, step: int, note: str = "") -> None:
        """Say that `step` steps are done."""
        self.done = step
        now = time.monotonic()
        if now - self._last >= self.every or step == self.steps:
            self._last = now
            text = f"{self.what}: {step}/{self.steps}{', ' + note if note else ''}, {self._remaining(now)}"
            print(text, file=sys.stderr, flush=True)

    def _remaining(self, now: float) -> str:
        made = self.done - self._first
        if self.done >= self.steps or not made:
            return f"{now - self._start:.0f} s"
        seconds = (now - self._start) / made * (self.steps - self.done)
        return f"ETA {seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60:02.0f}"
