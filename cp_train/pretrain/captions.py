"""What a scene is called: many ways of saying it, so that prompts people write meet words the model knows.

"A photo of" means a shaded drawing (the `3d` and `fluent` styles), each flat style has a medium of its own
("a cartoon of", "a sketch of", ...), and "a picture of" or no medium at all may be any style. Colours come from the
scene or, now and then, from the subject's own pixels; a few captions name only the category ("a photo of an animal").
"""

import random
from collections.abc import Mapping

from cp_train.pretrain.compose import Scene

MEDIA: Mapping[str, tuple[str, ...]] = {
    "3d": ("a photo of", "a photo of", "a 3d render of", "a close-up photo of"),
    "fluent": ("a photo of", "a photo of", "a glossy picture of", "a good photo of"),
    "flat": ("a flat drawing of", "a poster of"),
    "noto": ("an emoji of", "a sticker of"),
    "twemoji": ("a cartoon of", "a cartoon drawing of"),
    "blob": ("a painting of", "an old emoji of"),
    "firefox": ("an icon of", "a logo of"),
    "streamline": ("a sketch of", "a line drawing of"),
}
ANY_MEDIUM = ("a picture of", "an image of", "", "")
# fmt: off
_NO_ARTICLE = frozenset((
    "grapes", "cherries", "blueberries", "pancakes", "glasses", "sunglasses", "jeans", "shorts", "socks", "books",
    "scissors", "tickets", "maracas", "headphones", "lips", "french fries", "shopping bags", "theatre masks",
    "crossed swords", "nesting dolls", "bowling pins", "piano keys", "bread", "garlic", "broccoli", "bacon",
    "popcorn", "spaghetti", "sushi", "fire", "meat", "yarn", "coral", "dna", "poo", "clothing", "food", "money",
    "paper", "fried shrimp", "green salad", "sports equipment",
))
# fmt: on
"""Plurals and what cannot be counted."""

_OWN_MEDIUM, _CATEGORY, _OWN_COLOUR, _IN_COLOUR = 0.8, 0.03, 0.12, 0.4
"""Shares of captions with the style's medium, a category alone, a drawing's own colour, "in <colour>"."""


def with_article(words: str, noun: str | None = None) -> str:
    """ "a fox", "an owl", "grapes": the article that `words` takes when its noun is `noun`."""
    if (noun or words) in _NO_ARTICLE:
        return words
    spoken_vowel = (words[0] in "aeiou" and not words.startswith(("uni", "ufo"))) or words.startswith("hour")
    return f"{'an' if spoken_vowel else 'a'} {words}"


def caption(scene: Scene, chance: random.Random, own_colour: str | None = None) -> str:
    """One caption of the scene, drawn at random.

    Args:
        scene: what the picture shows.
        chance: the randomness.
        own_colour: the main colour of an untinted subject, mentioned in some captions.
    """
    media = MEDIA.get(scene.style, ())
    medium = chance.choice(media) if media and chance.random() < _OWN_MEDIUM else chance.choice(ANY_MEDIUM)
    words = _subject(scene, chance, own_colour)
    if scene.second:
        words += chance.choice((" and ", " and ", " next to ")) + with_article(scene.second.noun)
    if scene.ground:
        ground = with_article(f"{scene.ground} background")
        words += chance.choice((f" on {ground}", f" on {scene.ground}", f" with {ground}"))
    return f"{medium} {words}".strip()


def _subject(scene: Scene, chance: random.Random, own_colour: str | None) -> str:
    noun = scene.subject.noun
    plain = not (scene.tint or scene.second)
    if plain and chance.random() < _CATEGORY:
        return with_article(chance.choice((scene.subject.category, scene.subject.category, "object")))
    colour = scene.tint or (own_colour if plain and chance.random() < _OWN_COLOUR else None)
    if colour is None:
        return with_article(noun)
    if scene.tint and chance.random() < _IN_COLOUR:
        return f"{with_article(noun)} in {colour}"
    return with_article(f"{colour} {noun}", noun)


def neutral(noun: str) -> str:
    """A caption that says nothing of the style."""
    return f"a picture of {with_article(noun)}"


def plain(noun: str) -> str:
    """The caption every judged picture is generated from."""
    return f"a photo of {with_article(noun)}"
