"""The model card: what it is, what it was made from, what was measured."""

from typing import Any

from cp_train.benchmark.personalization import PROMPTS
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

## Taught something new
Held-out things, each learned from {references} pictures with the job's default settings (`{method}`, rank {rank},
{steps} steps). Likeness is the similarity of what is then drawn to those pictures (the judge's features), as a share
of theirs among themselves.

| figure | value |
|---|---|
| likeness, mean of {concepts} | {likeness:.2f} |
| seconds of training | {seconds:.0f} |
| "a <...> in blue" is blue | {in_blue:.0%} |
| plain `finetune` on {row} in a row: likeness of the first, when learned and at the end | {before:.2f}, {after:.2f} |

Each row: the pictures it was taught, then four of each prompt, uncurated: {prompts}.
Only the first of these was trained on.

![learned concepts](personalized.png)

## Made from
| style | package | version | licence | author | of trained things | of held-out things | of others | used for |
|---|---|---|---|---|---|---|---|---|
{sources}

Attribution: the drawings are the work of the authors named above, under the licences named there (Apache-2.0:
<https://www.apache.org/licenses/LICENSE-2.0>; CC-BY-4.0: <https://creativecommons.org/licenses/by/4.0/>; MIT:
<https://opensource.org/license/mit>); they were rendered, cropped, recoloured and combined. OpenMoji (CC-BY-SA-4.0)
was only measured against.
"""

_COLUMNS = ("style", "package", "version", "licence", "author", "trained", "held_out", "scenery", "used")


def card(metrics: dict[str, Any], learned: dict[str, Any], provenance: list[dict[str, Any]]) -> str:
    """The card as Markdown.

    Args:
        metrics: of `evaluate.measure`.
        learned: of `personalization.measure`.
        provenance: of `pictures.provenance`.
    """
    figures = "\n".join(f"| {name} | {value:.3g} |" for name, value in rows(metrics))
    sources = "\n".join(f"| {' | '.join(str(row.get(column, '')) for column in _COLUMNS)} |" for row in provenance)
    return _TEXT.format(
        trained=len(trained()),
        held=len(held_out()),
        figures=figures,
        sources=sources,
        seeds=metrics["settings"]["seeds"],
        concepts=len(learned["concepts"]),
        row=len(learned["finetune_in_a_row"]["learned"]),
        before=learned["finetune_in_a_row"]["learned"][0],
        after=learned["finetune_in_a_row"]["at_the_end"][0],
        prompts=", ".join(f'"{prompt.format("...")}"' for prompt in PROMPTS),
        **{key: learned[key] for key in ("likeness", "seconds", "in_blue", "method", "rank", "steps", "references")},
    )
