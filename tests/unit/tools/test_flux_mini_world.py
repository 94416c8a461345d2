"""flux-mini's drawn world: scenes, captions, latents and the judge agree with each other."""

import random

import numpy as np
import pytest
import torch

from tools.flux_mini import captions, words
from tools.flux_mini.judge import describe, verdict
from tools.flux_mini.latents import SHAPE_CODES, SceneBatch, encode, nearest_colour, pack, unpack
from tools.flux_mini.world import COLOURS, SHAPES, Spec, draw, lay_out

MIDDLE = np.full(3, 0.5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_judge_names_what_was_drawn(shape: str, size: str) -> None:
    spec = Spec(((shape, "red"),), "blue", size=size)
    found = describe(draw(lay_out(spec, 256, 256, MIDDLE)))
    assert str(found) == f"1 red {shape} on blue"


def test_judge_is_right_on_drawn_scenes_of_every_kind() -> None:
    rng = random.Random(7)
    wrong = []
    for k in range(90):
        spec = captions.random_spec(rng, ("single", "count", "relation")[k % 3])
        width, height = ((256, 256), (256, 512), (512, 256))[k % 3 if k % 2 else 0]
        scene = lay_out(spec, width, height, np.asarray([rng.random() for _ in range(3)]))
        if not all(verdict(spec, describe(draw(scene))).values()):
            wrong.append(spec)
    assert wrong == []


def test_judge_refuses_wrong_colour_shape_count_and_side() -> None:
    asked = Spec((("circle", "red"), ("square", "green")), "white", relation="left of")
    swapped = Spec(asked.objects, "white", relation="right of")
    result = verdict(asked, describe(draw(lay_out(swapped, 256, 256, MIDDLE))))
    assert result == {
        "background": True,
        "colour": True,
        "shape": True,
        "count": True,
        "relation": False,
    }
    other = Spec((("star", "pink"),) * 3, "black")
    result = verdict(asked, describe(draw(lay_out(other, 256, 256, MIDDLE))))
    assert not any(result.values())


def test_judge_calls_noise_unclear() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    assert describe(noise).background == "unclear"


def test_objects_stay_inside_the_picture() -> None:
    rng = random.Random(3)
    for kind in ("single", "count", "relation"):
        for _ in range(50):
            scene = lay_out(
                captions.random_spec(rng, kind),
                256,
                512,
                np.asarray([rng.random() for _ in range(3)]),
            )
            for o in scene.objects:
                assert o.radius < o.cx + 1e-6 < 256 - o.radius + 2e-6
                assert o.radius < o.cy + 1e-6 < 512 - o.radius + 2e-6


def test_captions_name_what_the_spec_holds_and_fit_the_text_length() -> None:
    rng = random.Random(11)
    for _ in range(2000):
        spec, text = captions.training_pair(rng)
        assert len(words.word_ids(text)) + 2 <= words.TEXT_LENGTH, text
        if spec.relation is None and spec.kind == "count":
            known = set(text.split())
            plurals = {w for pair in words.SHAPE_WORDS[spec.objects[0][0]] for w in pair[1].split()}
            assert known & plurals, text


def test_training_never_uses_held_out_combinations() -> None:
    rng = random.Random(5)
    for _ in range(300):
        spec = captions.random_spec(rng, "single", held=False)
        assert not captions.held_out(*spec.objects[0], spec.background)


def test_fast_ids_equal_the_saved_tokenizers() -> None:
    clip, t5 = words.build_tokenizer(with_start=True), words.build_tokenizer(with_start=False)
    for text in (
        "Three RED circles, on a grey backdrop!",
        "sea-otter",
        "",
        "a star " * 40,
        "日本 ☆",
    ):
        options = {"padding": "max_length", "max_length": words.TEXT_LENGTH, "truncation": True}
        assert clip(text, **options).input_ids == words.clip_ids(text)
        assert t5(text, **options).input_ids == words.t5_ids(text)


def test_latents_describe_the_scene() -> None:
    spec = Spec((("star", "yellow"), ("ring", "cyan")), "purple", relation="left of")
    latents, nearest = encode(SceneBatch.of([lay_out(spec, 512, 256, MIDDLE)]))
    assert latents.shape == (1, 14, 8, 16)
    assert nearest.shape == (1, 8, 16)
    for column, (shape, colour) in ((4, spec.objects[0]), (11, spec.objects[1])):
        pixel = latents[0, :, 4, column].numpy()
        assert SHAPES[int((SHAPE_CODES @ pixel[4:8]).argmax())] == shape
        assert nearest_colour(pixel[8:11]) == colour
        assert nearest_colour(pixel[11:14]) == "purple"
    assert torch.equal(unpack(pack(latents), 8, 16), latents)


def test_shape_words_differ_in_two_places() -> None:
    codes = SHAPE_CODES
    differing = (codes[:, None] != codes[None]).sum(-1)
    assert differing[~np.eye(len(SHAPES), dtype=bool)].min() == 2
    assert len(COLOURS) >= 8
    assert len(SHAPES) == 8
