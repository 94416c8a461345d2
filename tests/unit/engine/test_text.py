from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import TEXT_TOKENS

from serve_app.engine.load import load_pipeline
from serve_app.engine.text import PromptEncoder

PROMPTS = ["a cat", "two blue squares on a white background " * 5, "", "ein Kreis, 円"]


@pytest.fixture(params=["schnell", "dev"], scope="module")
def model(request: pytest.FixtureRequest, schnell_folder: Path, dev_folder: Path) -> FluxPipeline:
    folder = schnell_folder if request.param == "schnell" else dev_folder
    return load_pipeline(str(folder), "cpu", "fp32")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_prompt_is_encoded_bitwise_as_the_pipeline_does_it(
    model: FluxPipeline, prompt: str
) -> None:
    [ours] = PromptEncoder(model, TEXT_TOKENS, 0).encode([prompt])
    with torch.no_grad():
        states, pooled, _ = model.encode_prompt(prompt, max_sequence_length=TEXT_TOKENS)
    assert torch.equal(ours.states, states)
    assert torch.equal(ours.pooled, pooled)
    assert ours.prompt == prompt


def test_neighbours_in_a_pass_change_nothing_but_rounding(model: FluxPipeline) -> None:
    encoder = PromptEncoder(model, TEXT_TOKENS, 0)
    alone = [encoder.encode([prompt])[0] for prompt in PROMPTS]
    together = encoder.encode(PROMPTS)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.states, other.states, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.pooled, other.pooled, atol=1e-5, rtol=0)


def test_many_prompts_take_one_pass_and_equal_ones_are_encoded_once(model: FluxPipeline) -> None:
    encoder = PromptEncoder(model, TEXT_TOKENS, 8)
    first, second, third = encoder.encode(["a", "b", "a"])
    assert encoder.passes_done == 1
    assert first is third
    assert (first.prompt, second.prompt) == ("a", "b")
    assert first.encode_s > 0


def test_a_known_prompt_costs_no_pass_and_says_so(model: FluxPipeline) -> None:
    encoder = PromptEncoder(model, TEXT_TOKENS, 8)
    [before] = encoder.encode(["a"])
    [after] = encoder.encode(["a"])
    assert encoder.passes_done == 1
    assert torch.equal(before.states, after.states)
    assert after.encode_s == 0.0
    assert encoder.cached("a") is after
    assert encoder.cached("b") is None


def test_the_least_recently_used_prompt_is_forgotten(model: FluxPipeline) -> None:
    encoder = PromptEncoder(model, TEXT_TOKENS, 2)
    encoder.encode(["a"])
    encoder.encode(["b"])
    encoder.encode(["a"])
    encoder.encode(["c"])
    assert len(encoder) == 2
    assert encoder.cached("a")
    assert encoder.cached("c")
    assert encoder.cached("b") is None


def test_a_cache_of_no_entries_keeps_none(model: FluxPipeline) -> None:
    encoder = PromptEncoder(model, TEXT_TOKENS, 0)
    encoder.encode(["a", "b"])
    assert len(encoder) == 0


def test_more_prompts_than_a_pass_takes_are_all_encoded(model: FluxPipeline) -> None:
    encoder = PromptEncoder(model, TEXT_TOKENS, 3)
    prompts = [f"prompt {number}" for number in range(40)]
    assert [one.prompt for one in encoder.encode(prompts)] == prompts
    assert encoder.passes_done == 2
    assert len(encoder) == 3


def test_a_prompt_stays_out_of_the_logs(
    model: FluxPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    PromptEncoder(model, TEXT_TOKENS, 0).encode(["a private matter " * 50])
    assert "private" not in caplog.text
