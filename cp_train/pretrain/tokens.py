"""The tokenizer: byte-level BPE in CLIP's layout (lower case, `</w>` word ends), trained on the captions.

A few hundred everyday words are added to the training text, so that a prompt about something the base model never
drew (the nouns of concepts to come) is still a handful of tokens; nothing tells the model what they look like.
"""

import json
from collections.abc import Iterable, Iterator

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from cp_train.pretrain.captions import caption
from cp_train.pretrain.compose import TINTS
from cp_train.pretrain.loop import dice
from cp_train.pretrain.scenes import Painter

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 24

EVERYDAY = (
    "the my your his her our their this that these those one two three four five some with without in on at near "
    "under over behind beside between next to from of and or is are was wearing holding riding eating sitting standing "
    "flying running sleeping large big small tiny tall short round square old new shiny dark light bright pale colour "
    "color coloured colored golden silver black white gray grey cyan magenta beige wooden metal plastic glass paper "
    "photo picture image drawing painting sketch cartoon emoji icon sticker poster render style close-up rendition "
    "good bad nice cool weird dirty clean cropped cute happy sad funny scary night day beach forest snow city street "
    "table kitchen garden mountain sea sky space water grass wall floor man woman child boy girl person people toy "
    "animal bird fish insect flower plant fruit vegetable food drink vehicle boat building tool instrument clothing "
    "object thing robot fox owl panda unicorn rocket guitar castle pizza mug cup bottle bowl plate bag box chair lamp "
    "sofa vase statue figurine plushie doll puppet monster dragon dinosaur sneaker shoe jacket hat cap shirt sunglasses"
)
"""Words of prompts to come."""


def build(texts: Iterable[str], vocabulary: int) -> CLIPTokenizer:
    """A CLIP tokenizer of `vocabulary` tokens trained on the texts; start and end come last, as in CLIP's own."""
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = _whole_alphabet([token for token in model["vocab"] if token not in (START, END)])
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _whole_alphabet(tokens: list[str]) -> dict[str, int]:
    """The learned tokens with every byte as a letter and as a word's last letter, so that no text is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    wanted = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *tokens, START, END])
    return {token: number for number, token in enumerate(wanted)}


def corpus(painter: Painter, count: int, seed: int = 5) -> Iterator[str]:
    """Captions of random scenes, the colour words, and the everyday words, often enough to become tokens."""
    chance = dice(seed)
    yield from (caption(painter.scene(chance), chance) for _ in range(count))
    for words in (EVERYDAY, " ".join(TINTS)):
        yield from [words] * 50
