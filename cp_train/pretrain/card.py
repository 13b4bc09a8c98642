"""The model card: what it is, what it was made from, what was measured."""

from typing import Any

from cp_train.benchmark.personalization import PROMPTS
from cp_train.pretrain.artwork import LICENCES
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
`openmoji` trained it (`cp_train/pretrain/concepts.txt`, `splits.py`). Other code points that show a held-out thing once
more are left out as well. The judge knows the held-out concepts, and has never seen `twemoji` and `openmoji`.

## Measured
| figure | value |
|---|---|
{figures}

`judge.twemoji` and `judge.openmoji` are the judge's top-1 on real drawings of styles that it has never seen, among the
{asked} concepts that it is asked about (judged and held-out ones). `recognised` is its top-1 among the judged concepts
on pictures of "a photo of ...", uncurated.
`kid.generated` compares pictures of the judged concepts with real ones in the held-out styles, `kid.real` real ones in
the styles that trained the model with the same (what the styles alone make). `vae_db` is the peak signal-to-noise ratio
of the VAE's reconstructions, `seconds` are of one picture and of eight at once, of 20 steps, on two CPU cores.
`retrieval` is CLIP's, of a drawing in a held-out style by its caption; a concept may be among the pairs in both styles,
and either counts.

![judged concepts, {seeds} seeds each](judged.png)

![how words combine](composed.png)

## Taught something new
Held-out things (of the `reporting` part, on which no setting was chosen), each learned from {references} pictures with
the job's default settings (`{method}`, rank {rank}, {steps} steps). Likeness is the similarity of what is then drawn to
those pictures (the judge's features), as a share of theirs among themselves.

| figure | value |
|---|---|
| likeness, mean of {concepts} | {likeness:.2f} |
| seconds of training | {seconds:.0f} |
| "a <...> in blue" is blue (without "in blue") | {in_blue:.0%} ({blue_before:.0%}) |
| plain `finetune` on {row} in a row: likeness of the first, when learned and at the end | {before:.2f}, {after:.2f} |

Each row: the pictures it was taught, then four of each prompt, uncurated: {prompts}.
Only the first of these was trained on. What to expect of the others, by eye: a colour and a ground are followed, but
the colour fills the whole shape; beside another thing, or as a cartoon, little of what was learned is left.

![learned concepts](personalized.png)

## Made from
| style | package | version | licence | author | of trained things | of held-out things | of others | used for |
|---|---|---|---|---|---|---|---|---|
{sources}

Attribution: the drawings are the work of the authors named above, under the licences named there ({licences});
they were rendered, cropped, recoloured and combined. Of others' drawings only the VAE and the judge learned, of
pictograms only the judge and CLIP's image tower. The licence of `@lobehub/fluent-emoji-3d` is stated in its
`package.json` only. OpenMoji's drawings (CC-BY-SA-4.0) were only measured against; its list of names helped to find the
code points of others'.
"""

_LEARNED = ("likeness", "seconds", "in_blue", "blue_before", "method", "rank", "steps", "references")
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
        licences="; ".join(f"{name}: <{address}>" for name, address in LICENCES.items()),
        asked=metrics["judge"]["concepts"],
        seeds=metrics["settings"]["seeds"],
        concepts=len(learned["concepts"]),
        row=len(learned["finetune_in_a_row"]["learned"]),
        before=learned["finetune_in_a_row"]["learned"][0],
        after=learned["finetune_in_a_row"]["at_the_end"][0],
        prompts=", ".join(f'"{prompt.format("...")}"' for prompt in PROMPTS),
        **{key: learned[key] for key in _LEARNED},
    )
