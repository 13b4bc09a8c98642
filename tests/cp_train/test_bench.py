"""The speed comparison runs whole; what it measures is a matter of the machine and not asserted."""

import json
import math
from pathlib import Path

import pytest
import torch

from cp_train.bench import main, pictures, spread
from cp_train.data import to_pixels
from cp_train.denoise import LoopConfig
from cp_train.diffusers_loop import DiffusersLoop
from services.base_model import BaseModel


def test_it_writes_every_figure_that_is_promised(tiny_base: BaseModel, tmp_path: Path) -> None:
    flags = ["-o", str(tmp_path), "--base", tiny_base.ref.id, "--rounds", "1", "--steps", "2", "--threads", "1"]
    assert main(flags) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    for name in ("step_ratio_ewc_dc", "step_ratio_dsc", "step_ratio_kv", "job_speedup_vs_diffusers_loop"):
        assert math.isfinite(found[name])
        assert found[name] > 0
    assert set(found["step_seconds"]) == {"plain", "ewc_dc", "kv", "dsc", "bfloat16"}
    assert found["environment"]["steps"] == 2
    text = (tmp_path / "report.md").read_text("utf-8")
    assert f"python -m cp_train.bench -o {tmp_path}" in text
    assert (
        text.count("| at most ") + text.count("| at least ")
        == text.count("| met |") + text.count("| **not met** |")
        == 4
    )
    document = tmp_path / "docs.md"
    document.write_text("<!-- serving -->\n\nkept\n\n<!-- end of serving -->\n", "utf-8")
    assert main([*flags, "--publish", str(document)]) == 0
    assert "kept" in document.read_text("utf-8")
    assert "# Training" in document.read_text("utf-8")


@pytest.mark.parametrize(
    "flags", [["--rounds", "0"], ["--steps", "1"], ["--precision", "half"], ["--base", "nowhere"], ["--publish", "x"]]
)
def test_a_flag_that_cannot_work_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str]
) -> None:
    assert main(["-o", str(tmp_path), *flags]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_loop_it_is_compared_with_learns_the_same_weights(tiny_base: BaseModel) -> None:
    pixels = to_pixels(pictures(tiny_base, 2), tiny_base.image_size)
    loop = DiffusersLoop(tiny_base.ref.id, pixels, LoopConfig(batch_size=2), rank=4, device=torch.device("cpu"))
    lora = [parameter for parameter in loop.unet.parameters() if parameter.requires_grad]
    layout = tiny_base.layout
    assert sum(p.numel() for p in lora) == 4 * (len(layout.projections) * layout.text_width + layout.total)
    before = [parameter.detach().clone() for parameter in (*lora, loop.table)]
    losses = [loop.advance() for _ in range(2)]
    assert all(math.isfinite(loss) for loss in losses)
    assert not any(torch.equal(a, b) for a, b in zip(before, (*lora, loop.table), strict=True))
    assert torch.equal(before[-1][:-1], loop.table[:-1])


def test_the_spread_by_hand() -> None:
    assert spread([3.0]) == {"median": 3.0, "p10": 3.0, "p90": 3.0, "n": 1}
    assert spread([1.0, 2.0, 9.0])["median"] == 2.0
