"""Progress on a terminal and elsewhere."""

from io import StringIO

from services.bar import Bar

STEP = "<fox> step 10/20  loss 0.5000  200 ms/step  ETA 2 s"
HALF = {"step": 10, "steps": 20, "loss": 0.5, "eta_seconds": 2.0}
BAR = "[###############...............] 10/20  loss 0.5000  ETA 2 s"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        """What is seen: a line that begins anew is cleared first."""
        lines = self.getvalue().split("\n")
        return [line.rpartition("\r\x1b[K")[2] for line in lines]


def follow(bar: Bar) -> None:
    bar.say("<fox> learning from 6 images")
    bar.show({"step": 0, "steps": 20, "loss": None, "eta_seconds": None})
    bar.say(STEP)
    bar.show(HALF)
    bar.say("a warning")
    bar.end()
    bar.say("learned")


def test_on_a_terminal_a_bar_stays_below_the_lines() -> None:
    out = Terminal()
    follow(Bar(out))
    assert out.screen == ["<fox> learning from 6 images", "a warning", BAR, "learned", ""]
    assert f"[{'.' * 30}] 0/20" in out.getvalue()


def test_elsewhere_every_line_is_a_line() -> None:
    out = StringIO()
    follow(Bar(out))
    assert out.getvalue().splitlines() == ["<fox> learning from 6 images", STEP, "a warning", "learned"]
