"""The model card: what it is, what it was made from, what was measured."""

from typing import Any

from cp_train.benchmark.personalization import PROMPTS
from cp_train.pretrain.artwork import LICENCES
from cp_train.pretrain.evaluate import composed_prompts, rows
from cp_train.pretrain.splits import held_out, part, trained

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
{held} concepts are in no training picture of the base model in any style; other code points that show one of them once
more are left out as well. Two styles, `emojione` and `openmoji`, trained nothing that draws or reads
(`cp_train/pretrain/concepts.txt`, `splits.py`). The judge is another network with other data: it knows the held-out
concepts, for it is asked about them, and the styles that it has never seen are `twemoji` and `openmoji`, which is
outlines without shades, and in which it knows less. Words of three held-out nouns are in trained ones: "japanese
castle", "fountain pen", "satellite dish". Where what ships differs from this recipe, `NOTICE.md` beside it says so.

## Measured
| figure | value |
|---|---|
{figures}

Pictures are of {drawing[steps]} steps with guidance {drawing[guidance]:g}, times on {drawing[threads]} CPU threads.
KID is on the judge's features, against real drawings of the judged things in the held-out styles; a concept may be
among the pairs of retrieval in both of these, and either counts. That the judge picks the right name out of {judged}
says that the right thing is drawn, not that it is drawn well: look.

![judged concepts, {drawing[seeds]} seeds each](judged.png)

Row by row, {drawing[seeds]} pictures each: {names}.

![how words combine](composed.png)

Row by row, {drawing[seeds]} pictures each: {composed}.

## Taught something new
Held-out things of the `reporting` part, each learned from {references} pictures with the job's default settings
(`{method}`, rank {rank}, {steps} steps). Likeness is the similarity of what is then drawn to those pictures (the
judge's features), as a share of theirs among themselves. Settings were chosen on other things; some of these were
looked at on the way.

| figure | value |
|---|---|
| likeness, mean of {concepts} | {likeness:.2f} |
| likeness, of each | {each} |
| seconds of training, {threads} CPU threads | {seconds:.0f} |
| "a <...> in blue" is blue (without "in blue") | {in_blue:.0%} ({blue_before:.0%}) |

Each row: the pictures it was taught, then four of each prompt, uncurated: {prompts}.
Only the first of these was trained on.

![learned concepts](personalized.png)

{row} of them in a row, each from its pictures alone: likeness when it was learned -> after the last one.

| method | {first} |
|---|{rule}|
{chains}

Each row: the pictures it was taught, four by `{plain}` after the last one, four by `{method}`.

![what is left](in_a_row.png)

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

_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("recognised", "pictures of judged things that the judge recognises", "{:.0%}"),
    ("kid.generated", "KID of pictures of the judged things", "{:.3f}"),
    ("kid.real", "KID of real drawings of them in the training styles", "{:.3f}"),
    ("judge.twemoji", "judge: top-1 on `twemoji`'s real drawings", "{:.1%}"),
    ("judge.openmoji", "judge: top-1 on `openmoji`'s", "{:.1%}"),
    ("judge.concepts", "among so many names", "{}"),
    ("retrieval.at_1", "CLIP: right caption first", "{:.1%}"),
    ("retrieval.at_5", "CLIP: among the first five", "{:.1%}"),
    ("retrieval.pairs", "of so many held-out pairs", "{}"),
    ("vae_db.trained", "VAE: PSNR of drawings it was trained on, dB", "{:.1f}"),
    ("vae_db.held_out_concepts", "VAE: of held-out things", "{:.1f}"),
    ("vae_db.held_out_styles", "VAE: of held-out styles", "{:.1f}"),
    ("seconds.batch_1", "seconds for one picture", "{:.2f}"),
    ("seconds.batch_8", "seconds for eight at once", "{:.2f}"),
    ("megabytes.all", "weights, MB", "{:.1f}"),
    ("megabytes.judge", "of these the judge, MB", "{:.1f}"),
)
"""Of the metrics: name, what it is, format."""
_LEARNED = ("likeness", "seconds", "threads", "in_blue", "blue_before", "method", "rank", "steps", "references")
_COLUMNS = ("style", "package", "version", "licence", "author", "trained", "held_out", "scenery", "used")


def card(metrics: dict[str, Any], learned: dict[str, Any], provenance: list[dict[str, Any]]) -> str:
    """The card as Markdown.

    Args:
        metrics: of `evaluate.measure`.
        learned: of `personalization.measure`.
        provenance: of `pictures.provenance`.
    """
    known = dict(rows(metrics))
    figures = "\n".join(f"| {what} | {shown.format(known[name])} |" for name, what, shown in _FIGURES if name in known)
    judged = part("judged")
    sources = "\n".join(f"| {' | '.join(str(row.get(column, '')) for column in _COLUMNS)} |" for row in provenance)
    return _TEXT.format(
        trained=len(trained()),
        held=len(held_out()),
        figures=figures,
        sources=sources,
        licences="; ".join(f"{name}: <{address}>" for name, address in LICENCES.items()),
        drawing=metrics["settings"],
        judged=len(judged),
        names=", ".join(concept.noun for concept in judged),
        composed=", ".join(f'"{prompt}"' for prompt in composed_prompts(judged)),
        concepts=len(learned["concepts"]),
        each=", ".join(f"{name} {found['likeness']:.2f}" for name, found in learned["concepts"].items()),
        **_chains(learned),
        prompts=", ".join(f'"{prompt.format("...")}"' for prompt in PROMPTS),
        **{key: learned[key] for key in _LEARNED},
    )


def _chains(learned: dict[str, Any]) -> dict[str, Any]:
    """What the card says of those learned in a row."""
    chains: dict[str, dict[str, list[float]]] = learned["in_a_row"]
    plain = next(iter(chains))
    names = list(learned["concepts"])[: len(chains[plain]["learned"])]
    table = [
        " | ".join(f"{then:.2f} -> {end:.2f}" for then, end in zip(chain["learned"], chain["at_the_end"], strict=True))
        for chain in chains.values()
    ]
    return {
        "row": len(names),
        "plain": plain,
        "first": " | ".join(names),
        "rule": "|".join("---" for _ in names),
        "chains": "\n".join(f"| `{method}` | {cells} |" for method, cells in zip(chains, table, strict=True)),
    }
