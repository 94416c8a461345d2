"""What people say about scenes: random specs, and captions in varied words and order."""

import random
import zlib

from tools.flux_mini.words import COLOUR_WORDS, COUNT_WORDS, RELATION_WORDS, SHAPE_WORDS, SIZE_WORDS
from tools.flux_mini.world import (
    COLOURS,
    DEFAULT_COLOUR,
    DEFAULT_SHAPE,
    RELATIONS,
    SHAPES,
    Spec,
    default_background,
)

_STARTS = (
    "a photo of", "a picture of", "an image of", "a drawing of", "an illustration of", "draw",
    "show me", "please paint", "please draw", "there is", "there are", "photo of", "picture of",
)  # fmt: skip
_GROUND_NOUNS = ("background", "backdrop")
_FILLERS = (
    "cute", "nice", "very", "beautiful", "bright", "floating", "calmly", "style", "detailed",
    "high", "quality", "art", "vivid", "lonely", "glossy", "4k", "hello", "sea", "otter", "baby",
    "back", "forest", "city",
)  # fmt: skip  # none of these is in the vocabulary: each reads as <unk>
_FUNCTION_WORDS = ("a", "the", "of", "on", "in", "its", "with", "and", "at", "to", "it", "is")


def held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this combination (one in ten) is kept from training, to measure composition."""
    return zlib.crc32(f"{shape}/{colour}/{background}".encode()) % 10 == 0


def random_spec(rng: random.Random, kind: str, held: bool | None = None) -> Spec:
    """A random spec of a kind (`single`, `count`, `relation`); `held` picks the side of the held-
    out split.
    """
    while True:
        colour, shape, ground = rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(COLOURS)
        if colour == ground or (held is not None and held_out(shape, colour, ground) != held):
            continue
        if kind == "relation":
            other, form = rng.choice(COLOURS), rng.choice(SHAPES)
            if other == ground or (other, form) == (colour, shape):
                continue
            return Spec(((shape, colour), (form, other)), ground, relation=rng.choice(RELATIONS))
        size = rng.choices(("medium", "small", "large"), (0.5, 0.25, 0.25))[0]
        n = 1 if kind == "single" else rng.choice((2, 3, 4))
        return Spec(((shape, colour),) * n, ground, size=size)


def _noun(rng: random.Random, shape: str, plural: bool) -> str:
    # The plain name half of the time, synonyms share the rest.
    forms = SHAPE_WORDS[shape]
    return (forms[0] if rng.random() < 0.5 else rng.choice(forms))[plural]


def _colour(rng: random.Random, colour: str) -> str:
    words = COLOUR_WORDS[colour]
    return words[0] if rng.random() < 0.6 else rng.choice(words)


def _thing(rng: random.Random, shape: str, colour: str, size: str = "medium", n: int = 1) -> str:
    """Name objects: "a small red circle", "three blue stars", "a circle that is red"."""
    count = rng.choice(COUNT_WORDS[n])
    if n == 1 and rng.random() < 0.5:
        count = "a"
    sizes = SIZE_WORDS[size]
    adjectives = [rng.choice(sizes)] if sizes else []
    noun = _noun(rng, shape, plural=n > 1)
    hue = _colour(rng, colour)
    if rng.random() < 0.06:
        return " ".join([count, *adjectives, noun, "that is" if n == 1 else "that are", hue])
    if rng.random() < 0.05:
        hue += " colored"
    adjectives = [hue, *adjectives] if adjectives and rng.random() < 0.2 else [*adjectives, hue]
    return " ".join([count, *adjectives, noun])


def _with_ground(rng: random.Random, things: str, ground: str) -> str:
    hue, noun = _colour(rng, ground), rng.choice(_GROUND_NOUNS)
    plain = rng.choice(("", "", "", "plain ", "solid "))
    article = rng.choice(("a", "a", "a", "the"))
    return rng.choice(
        (
            f"{things} on {article} {plain}{hue} {noun}",
            f"{things} on {article} {plain}{hue} {noun}",
            f"{things} on {article} {plain}{hue} {noun}",
            f"{things} against {article} {plain}{hue} {noun}",
            f"{things} with {article} {plain}{hue} {noun}",
            f"{things} in front of {article} {hue} {noun}",
            f"{things} {plain}{hue} {noun}",
            f"{things} on {hue}",
            f"on {article} {plain}{hue} {noun} {things}",
            f"{hue} {noun} {things}",
            f"{things} the {noun} is {hue}",
        )
    )


def _relation(rng: random.Random, spec: Spec) -> str:
    assert spec.relation is not None
    first, second = (_thing(rng, *o) for o in spec.objects)
    words = rng.choice(RELATION_WORDS[spec.relation])
    if spec.relation == "left of" and rng.random() < 0.15:
        return f"{first} and {second}" if rng.random() < 0.6 else f"{first} next to {second}"
    return f"{first} {words} {second}"


def caption(rng: random.Random, spec: Spec) -> str:
    """One way to say `spec`."""
    if spec.relation is not None:
        things = _relation(rng, spec)
    else:
        things = _thing(rng, *spec.objects[0], size=spec.size, n=len(spec.objects))
    text = _with_ground(rng, things, spec.background)
    if rng.random() < 0.2 and not text.startswith("on "):
        text = f"{rng.choice(_STARTS)} {text}"
    if rng.random() < 0.1:
        text = _with_fillers(rng, text)
    return " ".join(text.split())


def _with_fillers(rng: random.Random, text: str) -> str:
    words = text.split()
    for _ in range(rng.choice((1, 1, 2, 3))):
        words.insert(rng.randrange(len(words) + 1), rng.choice(_FILLERS))
    return " ".join(words)


def loose_caption(rng: random.Random) -> tuple[Spec, str]:
    """A caption that leaves things out, or is free text, with what is drawn then."""
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    kind = rng.random()
    if kind < 0.45:  # "a red circle"
        n = rng.choices((1, 2, 3, 4), (0.7, 0.1, 0.1, 0.1))[0]
        size = rng.choice(("medium", "medium", "small", "large"))
        spec = Spec(((shape, colour),) * n, default_background(colour), size=size)
        text = _thing(rng, shape, colour, size, n)
    elif kind < 0.6:  # "a star", "a heart on a red background"
        colour = DEFAULT_COLOUR[shape]
        ground = rng.choice(COLOURS)
        text = f"{rng.choice(COUNT_WORDS[1])} {_noun(rng, shape, False)}"
        spec = Spec(((shape, colour),), default_background(colour))
        if ground != colour and rng.random() < 0.5:
            spec = Spec(((shape, colour),), ground)
            text = _with_ground(rng, text, ground)
    elif kind < 0.7:  # "something blue"
        spec = Spec(((DEFAULT_SHAPE, colour),), default_background(colour))
        text = (
            f"{rng.choice(('something', 'a thing that is', 'object', ''))} {_colour(rng, colour)}"
        )
    else:  # free text: nothing known
        spec = Spec(((DEFAULT_SHAPE, DEFAULT_COLOUR[DEFAULT_SHAPE]),), "white")
        words = [
            rng.choice(_FILLERS if rng.random() < 0.7 else _FUNCTION_WORDS)
            for _ in range(rng.randint(0, 22))
        ]
        return spec, " ".join(words)
    if rng.random() < 0.3:
        text = f"{rng.choice(_STARTS)} {text}"
    if rng.random() < 0.25:
        text = _with_fillers(rng, text)
    return spec, " ".join(text.split())


# How often each kind is drawn in training: relations are what takes longest to learn.
MIX = (("single", 0.38), ("count", 0.11), ("relation", 0.44), ("loose", 0.07))


def training_pair(rng: random.Random) -> tuple[Spec, str]:
    """A spec and its caption, never from the held-out combinations."""
    kind = rng.choices([k for k, _ in MIX], [w for _, w in MIX])[0]
    if kind == "loose":
        return loose_caption(rng)
    spec = random_spec(rng, kind, held=False)
    return spec, caption(rng, spec)
