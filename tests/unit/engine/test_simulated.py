"""The simulated engine: the real queue and schedule around a model that only takes its time."""

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_kit import until
from PIL import Image

from serve_app.config import EngineConfig
from serve_app.engine import simulated_picture
from serve_app.engine.job import Finished, GenerationJob, ModelInfo, OutputFormat, Preview, Queued
from serve_app.engine.open import open_engine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.engine.simulated_cost import STEP_MS, SimulatedCost
from serve_app.engine.simulated_picture import Placeholder
from serve_app.engine.source import SIMULATED_SOURCES, model_info
from serve_app.errors import ConfigError, DeadlineExceeded, Draining, InvalidValue, Overloaded

ROOT = Path(__file__).parents[3]
SCHNELL = "simulated:h200:schnell"


def job(job_id: str = "job", edge: int = 256, steps: int = 4, **changes: Any) -> GenerationJob:
    fields: dict[str, Any] = {"prompt": "a red circle", "guidance": 0.0, "seeds": (7,), **changes}
    return GenerationJob(job_id=job_id, width=edge, height=edge, steps=steps, **fields)


def make(source: str = SCHNELL, **settings: Any) -> SimulatedEngine:
    settings = {"simulation": {"time_scale": 0.01}, **settings}
    return SimulatedEngine(source, EngineConfig.model_validate(settings))


@pytest.fixture
async def engine() -> AsyncIterator[SimulatedEngine]:
    async with make() as made:
        await made.warm_up([(1024, 1024)])
        yield made


async def test_it_draws_labelled_pictures_of_the_right_size_in_every_format(
    engine: SimulatedEngine,
) -> None:
    formats: list[tuple[OutputFormat, str]] = [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")]
    for asked, got in formats:
        result = await engine.generate(job(seeds=(1, 2), output_format=asked))
        assert [image.seed for image in result.images] == [1, 2]
        pictures = [Image.open(io.BytesIO(image.image)) for image in result.images]
        assert {(picture.format, picture.size) for picture in pictures} == {(got, (256, 256))}
        assert all(len(picture.convert("RGB").getcolors(70_000) or []) > 1 for picture in pictures)
        assert result.images[0].image != result.images[1].image


def test_the_label_names_size_and_seed_but_never_the_prompt() -> None:
    lines = Placeholder(512, 256, 42, "my secret").lines()
    assert lines[:3] == ["simulated", "512x256", "seed 42"]
    assert "secret" not in "".join(lines)
    assert lines != Placeholder(512, 256, 42, "another secret").lines()


def test_equal_jobs_give_equal_bytes() -> None:
    first, second = (
        simulated_picture.encode(Placeholder(64, 64, 1, "x"), "png", 0) for _ in range(2)
    )
    assert first == second


async def test_a_job_streams_as_a_real_one_does(engine: SimulatedEngine) -> None:
    events = [event async for event in engine.submit(job(steps=8, previews=2))]
    assert isinstance(events[0], Queued)
    previews = [event for event in events if isinstance(event, Preview)]
    assert [event.number for event in previews] == [0, 1]
    assert isinstance(events[-1], Finished)
    assert engine.stats().steps_done == 8
    assert events[-1].timings.denoise_s > 0


async def test_a_warm_engine_knows_what_jobs_cost_before_the_first_one(
    engine: SimulatedEngine,
) -> None:
    assert engine.estimate(job(edge=1024)) == pytest.approx(engine.cost.job_s((1024, 1024), 4))
    assert engine.stats().backlog_s == 0.0


async def test_jobs_that_cannot_be_done_in_time_are_refused_as_by_a_real_engine() -> None:
    async with make(queue_max_samples=2, simulation={"time_scale": 1}) as engine:
        await engine.warm_up([(1024, 1024)])
        with pytest.raises(DeadlineExceeded):
            await engine.generate(job(edge=1024, steps=50, timeout_s=1))
        waiting = asyncio.create_task(engine.generate(job("a", 1024, 50, seeds=(1, 2))))
        await until(lambda: engine.stats().samples_running > 0)
        with pytest.raises(Overloaded):
            await engine.generate(job("b"))
        assert engine.stats().backlog_s > 1
        assert engine.cancel("a")
        with pytest.raises(Exception, match="cancelled"):
            await waiting


async def test_closing_ends_what_waits() -> None:
    engine = make(simulation={"time_scale": 1})
    task = asyncio.create_task(engine.generate(job(edge=1024, steps=50)))
    await until(lambda: engine.stats().samples_running > 0)
    assert engine.healthy()
    await engine.close()
    with pytest.raises(Draining):
        await task


async def test_small_samples_share_step_batches(engine: SimulatedEngine) -> None:
    await engine.warm_up([(256, 256)])
    await asyncio.gather(*(engine.generate(job(f"j{n}", prompt=f"{n}")) for n in range(16)))
    [size] = [one for one in engine.stats().sizes if one.width == 256]
    assert size.images_done == 16
    assert size.occupancy > 1


async def test_sizes_that_flux_cannot_draw_are_refused(engine: SimulatedEngine) -> None:
    with pytest.raises(InvalidValue, match="multiples of 16"):
        await engine.generate(job(edge=250))


@pytest.mark.parametrize("source", SIMULATED_SOURCES)
def test_every_listed_source_exists(source: str) -> None:
    guidance = source.endswith("dev")
    assert model_info(source) == ModelInfo(16, 512 if guidance else 256, guidance)


@pytest.mark.parametrize("source", ["simulated:", "simulated:h200", "simulated:tpu:dev"])
def test_any_other_is_refused_by_name(source: str) -> None:
    with pytest.raises(ConfigError, match="simulated:h200:schnell"):
        model_info(source)
    with pytest.raises(ConfigError, match="simulated:h200:schnell"):
        open_engine(source, EngineConfig(), None)


@pytest.mark.parametrize(("edge", "index"), [(256, 0), (384, 1), (512, 2), (768, 3), (1024, 4)])
def test_costs_are_those_of_the_table(edge: int, index: int) -> None:
    cost = SimulatedCost("h100", 256)
    assert cost.step_s((edge, edge), 1) == pytest.approx(STEP_MS[index] / 1000)


def test_costs_grow_with_size_batch_and_text_and_scale_with_the_device() -> None:
    cost = SimulatedCost("h200", 256)
    sizes = [cost.step_s((edge, edge), 1) for edge in range(64, 2064, 64)]
    assert sizes == sorted(sizes)
    batches = [cost.step_s((512, 512), samples) for samples in range(1, 17)]
    assert batches == sorted(batches)
    assert SimulatedCost("h200", 512).step_s((512, 512), 1) > cost.step_s((512, 512), 1)
    assert SimulatedCost("l4", 256).decode_s((512, 512)) > 5 * cost.decode_s((512, 512))
    fast = SimulatedCost("h200", 256, time_scale=0.1)
    assert fast.encode_s(3) == pytest.approx(cost.encode_s(3) / 10)


def test_it_starts_without_torch() -> None:
    script = (
        "import sys; from serve_app.config import EngineConfig;"
        "from serve_app.engine.open import open_engine;"
        f"open_engine({SCHNELL!r}, EngineConfig(), None);"
        "print(*sys.modules.keys() & {'torch', 'diffusers', 'transformers', 'ray'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
