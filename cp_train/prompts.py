"""Training prompts: what stands for each concept while it is learned, scored, drawn and protected."""

from collections.abc import Sequence

import torch

from services.manifest import Concept

TEMPLATES = ("a photo of a {}", "a {}", "a picture of a {}", "{}")
"""Ours; a setting. Each is used with the concept alone and with its class noun behind it. Had it been learned by the
first alone, other words would not draw it."""
NO_NOUN = "object"
"""The pretrained concept c^0 of a concept that has no class noun."""

MEDIA = ("a photo of", "a picture of", "a close-up of", "a drawing of", "an image of", "a painting of")
ADJECTIVES = ("", "small ", "big ", "red ", "blue ", "green ", "old ", "new ")
PLACES = ("", " on a table", " in a field", " on the beach", " in a room", " in the rain", " at night", " and a {noun}")
_NOUNS = """
cat dog horse duck fish bear rabbit mouse cow pig sheep wolf tiger elephant monkey lizard snake turtle beetle
bee spider tree flower leaf carrot apple banana grape lemon cherry bread cheese egg pretzel cake cookie cup
bottle knife spoon plate bowl house temple tower bridge car bus truck train motorcycle boat ship airplane balloon
hat shoe shirt dress glasses ring bag scarf book pen key lock lamp clock phone camera computer trumpet drum
ball toy gift sun moon star cloud kite fire mountain person man woman child face hand heart eye
"""
NOUNS = tuple(_NOUNS.split())
"""Vocabulary of the varied and generic prompts; ours, without the concepts that are held out of the embedded base to be
learned (`pretrain/concepts.txt`). Prompts made of other words are unseen."""


def concept_prompts(templates: Sequence[str], concept: Concept) -> list[str]:
    """ "a photo of a <mug>" and "a photo of a <mug> mug", for every template."""
    forms = (f"<{concept.name}>", f"<{concept.name}> {concept.noun}".rstrip())
    return [template.format(form) for template in templates for form in forms]


def prior_prompts(templates: Sequence[str], concept: Concept) -> list[str]:
    """The same templates for the pretrained concept c^0, its class noun; aligned with `concept_prompts`."""
    return [template.format(concept.noun or NO_NOUN) for template in templates for _ in range(2)]


def plain_prompt(concept: Concept) -> str:
    """The prompt that stands for a concept on sample grids."""
    return TEMPLATES[0].format(f"<{concept.name}>")


def varied(subject: str, generator: torch.Generator) -> str:
    """A subject in some medium, manner and place."""

    def pick(words: Sequence[str]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    place = pick(PLACES).format(noun=pick(NOUNS))
    return f"{pick(MEDIA)} a {pick(ADJECTIVES)}{subject}{place}"


def captions(count: int, generator: torch.Generator) -> list[str]:
    """Generic captions, which name no concept; the first is empty, as what guidance leads away from."""
    nouns = [NOUNS[i] for i in torch.randint(len(NOUNS), (count - 1,), generator=generator).tolist()]
    return ["", *(varied(noun, generator) for noun in nouns)]


def protected_prompts(
    templates: Sequence[str], concepts: Sequence[Concept], count: int, generic: float, generator: torch.Generator
) -> tuple[list[str], list[str]]:
    """Prompts that must draw what they drew: captions; and of each concept equally many, half in training form."""
    general = captions(max(1, round(count * generic)), generator)
    chosen = []
    for index in range((count - len(general)) if concepts else 0):
        concept, turn = concepts[index % len(concepts)], index // len(concepts)
        forms = concept_prompts(templates, concept)
        subject = f"<{concept.name}> {concept.noun if turn % 4 == 1 else ''}".rstrip()
        chosen.append(varied(subject, generator) if turn % 2 else forms[turn // 2 % len(forms)])
    return general, chosen
