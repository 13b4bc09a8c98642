"""The model card: what it is, what it was made from, what was measured."""

from typing import Any

from cp_train.pretrain.evaluate import rows
from cp_train.pretrain.splits import held_out, trained

_TEXT = """# Palimpsest's embedded base model

A text-to-image model in the Stable Diffusion 1.x layout (`StableDiffusionPipeline.from_pretrained`), 64x64 pictures,
trained from nothing by `python -m cp_train.pretrain` on openly licensed emoji artwork. It is small on purpose: it makes
the demo, the tests and the benchmark run on two CPU cores. It draws the {trained} things it was taught, in the styles
of that artwork, and nothing else; it knows no people, places, flags or text.

- `pipeline/`: VAE, U-Net, text encoder, tokenizer, scheduler (float16 safetensors)
- `clip/`: the CLIP whose text tower the pipeline uses
- `judge/`: an image network that shares nothing with the generator; its features serve the metrics

Prompts it understands: "a photo of a fish", "a cartoon of ...", "a sketch of ...", "a flat drawing of ...", "a blue
...", "... in green", "... on a red background", "... and ...". Colours: red, orange, yellow, green, blue, purple, pink,
brown, and for grounds also grey and black.

## Held out
{held} concepts are in no training picture of the base model in any style, and no picture in the styles `emojione` and
`openmoji` trained any model (`cp_train/pretrain/concepts.txt`, `splits.py`). The judge knows the held-out concepts from
the other styles.

## Measured
| figure | value |
|---|---|
{figures}

`recognised` is the judge's top-1 among the judged concepts on pictures of "a photo of ...", uncurated:

![judged concepts, {seeds} seeds each](judged.png)

![how words combine](composed.png)

## Made from
| style | package | version | licence | author | trained on | held out | VAE only | used for |
|---|---|---|---|---|---|---|---|---|
{sources}

Attribution: the drawings are the work of the authors named above, under the licences named there (Apache-2.0:
<https://www.apache.org/licenses/LICENSE-2.0>; CC-BY-4.0: <https://creativecommons.org/licenses/by/4.0/>; MIT:
<https://opensource.org/license/mit>); they were rendered, cropped, recoloured and combined. OpenMoji (CC-BY-SA-4.0)
was only measured against.
"""

_COLUMNS = ("style", "package", "version", "licence", "author", "trained", "held_out", "vae_only", "used")


def card(metrics: dict[str, Any], provenance: list[dict[str, Any]]) -> str:
    """The card as Markdown."""
    figures = "\n".join(f"| {name} | {value:.3g} |" for name, value in rows(metrics))
    sources = "\n".join(f"| {' | '.join(str(row.get(column, '')) for column in _COLUMNS)} |" for row in provenance)
    return _TEXT.format(
        trained=len(trained()),
        held=len(held_out()),
        figures=figures,
        sources=sources,
        seeds=metrics["settings"]["seeds"],
    )
