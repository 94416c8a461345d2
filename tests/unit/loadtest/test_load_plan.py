"""Plans: the same everywhere, and strict about what they are made of."""

from pathlib import Path

import pytest
from load_kit import plan

from serve_app.errors import ConfigError
from serve_app.loadtest.mix import Mix
from serve_app.loadtest.plan import Plan, read_trace
from serve_app.schema import ImageRequest, parse_request

MIX = {"requests": [{"weight": 3.0, "size": "256x256"}, {"weight": 1.0, "steps": 2, "n": 2}]}


def test_the_same_plan_in_another_process_sends_the_same_requests() -> None:
    here = plan(mix=Mix.model_validate(MIX))
    there = Plan.model_validate_json(here.model_dump_json())
    assert there.schedule() == here.schedule()
    assert [there.request(i, entry) for i, (_, entry) in enumerate(there.schedule())] == [
        here.request(i, entry) for i, (_, entry) in enumerate(here.schedule())
    ]


def test_another_seed_is_another_test() -> None:
    assert plan(seed=1).schedule() != plan(seed=2).schedule()
    assert plan(seed=1).request(0, 0) != plan(seed=2).request(0, 0)


def test_entries_come_by_their_weights() -> None:
    entries = [entry for _, entry in plan(mix=Mix.model_validate(MIX), peak_rps=100.0).schedule()]
    assert entries.count(0) / len(entries) == pytest.approx(0.75, abs=0.04)


def test_every_request_is_one_that_the_api_takes() -> None:
    whole = Mix.model_validate(
        {
            "requests": [
                {
                    "prompts": ["a"],
                    "model": "m",
                    "size": "256x256",
                    "steps": 3,
                    "quality": "low",
                    "n": 2,
                    "output_format": "png",
                    "response_format": "url",
                }
            ]
        }
    )
    body = plan(mix=whole).request(5, 0)
    wire = parse_request(ImageRequest, body)
    assert set(body) <= set(ImageRequest.model_fields)
    assert (wire.size, wire.num_inference_steps, wire.quality, wire.n) == ("256x256", 3, "low", 2)


def test_prompts_are_numbered_unless_the_mix_says_that_they_repeat() -> None:
    assert plan().request(5, 0)["prompt"].endswith(", number 5")
    repeating = Mix.model_validate({"vary_prompts": False})
    assert "number" not in plan(mix=repeating).request(5, 0)["prompt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("requests: [{size: 5}]", "requests.0.size"),
        ("requests: [{n: 11}]", "requests.0.n"),
        ("requests: [{steps: true}]", "requests.0.steps"),
        ("requests: [{weight: 0}]", "requests.0.weight"),
        ("requests: [{prompts: []}]", "requests.0.prompts"),
        ("requests: [{quality: best}]", "requests.0.quality"),
        ("requests: [{prompt: x}]", "requests.0.prompt"),
        ("requests: []", "requests"),
        ("weights: []", "weights"),
        ("[]", "file"),
        ("a: [", "no YAML"),
    ],
)
def test_a_bad_mix_names_the_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Mix.read(file)
    assert str(file) in str(caught.value)
    assert f" {said}" in str(caught.value)


def test_the_shipped_mixes_are_valid() -> None:
    files = sorted((Path(__file__).parents[3] / "configs" / "loadmixes").glob("*.yaml"))
    assert files
    for file in files:
        Mix.read(file)


def trace(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    return file


def test_a_trace_is_sent_as_it_was_recorded(tmp_path: Path) -> None:
    file = trace(
        tmp_path,
        "time_s,prompt,size,steps,n\n0,a cat,256x256,4,\n0.5,a dog,,,2\n0.5,a cat,256x256,4,\n",
    )
    found = read_trace(file, None)
    made = plan(mix=found.mix, trace=found.arrivals)
    assert made.schedule() == [(0.0, 0), (0.5, 1), (0.5, 0)]
    first, second = made.request(0, 0), made.request(1, 1)
    assert (first["prompt"], first["size"], first["num_inference_steps"]) == ("a cat", "256x256", 4)
    assert (second["prompt"], second["n"]) == ("a dog", 2)
    assert "size" not in second


def test_a_trace_ends_with_the_duration(tmp_path: Path) -> None:
    file = trace(tmp_path, "time_s\n0\n1\n2\n")
    assert len(read_trace(file, 1.5).arrivals) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "header"),
        ("time_s\n", "header"),
        ("at\n1\n", "header"),
        ("time_s,colour\n1,red\n", "header"),
        ("time_s\nsoon\n", ":2: time_s"),
        ("time_s\n-1\n", ":2: time_s"),
        ("time_s\nnan\n", ":2: time_s"),
        ("time_s\n2\n1\n", ":3: time_s"),
        ("time_s,n\n1,two\n", ":2: n"),
        ("time_s,steps\n1,0\n", ":2: steps"),
        ("time_s,size\n1,big\n", ":2: size"),
    ],
)
def test_a_bad_trace_names_the_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(trace(tmp_path, text), None)
    assert said in str(caught.value)
