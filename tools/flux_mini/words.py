"""The vocabulary of flux-mini and its tokenizers: whole words, lower case, punctuation dropped."""

import re

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
TEXT_LENGTH = 24  # tokens, the end token included; both encoders are trained at exactly this length

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "cyan": ("cyan", "turquoise"),
    "brown": ("brown",),
    "gray": ("gray", "grey"),
    "black": ("black",),
    "white": ("white",),
}
# (singular, plural)
SHAPE_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (
        ("circle", "circles"),
        ("disc", "discs"),
        ("disk", "disks"),
        ("ball", "balls"),
        ("dot", "dots"),
    ),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
    "ring": (("ring", "rings"), ("donut", "donuts"), ("hoop", "hoops")),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge"),
}
COUNT_WORDS: dict[int, tuple[str, ...]] = {
    1: ("a", "one", "1", "a single", "the", ""),
    2: ("two", "2", "a pair of"),
    3: ("three", "3"),
    4: ("four", "4"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
}
_OTHER_WORDS = (
    "a an the of on in with to and by at is are there its it this that against top left right "
    "background backdrop photo picture image drawing draw show me please paint illustration "
    "plain solid simple flat next beside colored coloured shape object something"
)


def _vocabulary() -> dict[str, int]:
    words: list[str] = [PAD, UNK, BOS, EOS]
    groups: list[str] = [_OTHER_WORDS]
    groups += [w for ws in COLOUR_WORDS.values() for w in ws]
    groups += [w for ws in SHAPE_WORDS.values() for pair in ws for w in pair]
    groups += [w for table in (SIZE_WORDS, RELATION_WORDS) for ws in table.values() for w in ws]
    groups += [w for ws in COUNT_WORDS.values() for w in ws]
    for group in groups:
        words += group.split()
    return {w: i for i, w in enumerate(dict.fromkeys(words))}


VOCABULARY: dict[str, int] = _vocabulary()
_NOT_A_WORD = re.compile(r"[^a-z0-9]+")


def word_ids(text: str) -> list[int]:
    """Ids of the words of `text`, without special tokens; the same as the saved tokenizers, but
    faster.
    """
    return [VOCABULARY.get(w, VOCABULARY[UNK]) for w in _NOT_A_WORD.split(text.lower()) if w]


def t5_ids(text: str) -> list[int]:
    """TEXT_LENGTH ids as tokenizer_2 makes them."""
    ids = [*word_ids(text)[: TEXT_LENGTH - 1], VOCABULARY[EOS]]
    return ids + [VOCABULARY[PAD]] * (TEXT_LENGTH - len(ids))


def clip_ids(text: str) -> list[int]:
    """TEXT_LENGTH ids as tokenizer makes them."""
    ids = [VOCABULARY[BOS], *word_ids(text)[: TEXT_LENGTH - 2], VOCABULARY[EOS]]
    return ids + [VOCABULARY[PAD]] * (TEXT_LENGTH - len(ids))


def build_tokenizer(with_start: bool) -> PreTrainedTokenizerFast:
    """The CLIP slot's tokenizer (`with_start`) or the T5 slot's."""
    core = Tokenizer(WordLevel(VOCABULARY, unk_token=UNK))
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if with_start else f"$A {EOS}",
        special_tokens=[(BOS, VOCABULARY[BOS]), (EOS, VOCABULARY[EOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=TEXT_LENGTH,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="right",
        truncation_side="right",
    )
