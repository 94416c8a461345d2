"""Bookkeeping of recorded steps. A stand-in for a CUDA graph keeps its contract on a CPU: it reads
and writes fixed buffers, and nothing else. What CUDA makes of it: `tests/gpu/test_gpu_graphs.py`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import TEXT_TOKENS, make_job

from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine import memory
from serve_app.engine.engine import Engine
from serve_app.engine.graphs import Graph, Inputs, StepGraphs
from serve_app.engine.load import load_pipeline
from serve_app.engine.memory import GIB, Footprint
from serve_app.errors import ConfigError

FOOTPRINT = Footprint(bytes_per_token=1000, bytes_per_pixel=10, text_tokens=8, token_px=16)


class Rerun:
    """Runs the recorded call again, on the buffers that it was recorded with, into the output."""

    def __init__(self, call: Callable[[], torch.Tensor], output: torch.Tensor) -> None:
        self._call, self._output = call, output

    def replay(self) -> None:
        with torch.no_grad():
            self._output.copy_(self._call())


class Recordings:
    """A recorder that remembers what it recorded."""

    def __init__(self, most: int = 99) -> None:
        self.batches: list[int] = []
        self._most = most

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
        output = call()
        if output.shape[0] > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(output.shape[0])
        return Rerun(call, output), output


def on_cuda(**changes: Any) -> EngineConfig:
    """What a GPU's configuration would be, for an engine that is given everything else."""
    optimize = OptimizeConfig(cuda_graphs=("64x64",))
    config = EngineConfig(device="cuda", optimize=optimize, **changes)
    return config.model_copy(update={"device": "cpu"})


def engine(folder: Path, recorder: Recordings | None, **changes: Any) -> Engine:
    config = on_cuda(torch_threads=1, budget_measure_s=0, memory_limit_gib=1, **changes)
    if recorder is None:
        config = config.model_copy(update={"optimize": OptimizeConfig()})
    pipeline = load_pipeline(str(folder), "cpu", "fp32")
    return Engine(pipeline, config, text_tokens_max=TEXT_TOKENS, recorder=recorder)


async def test_replayed_steps_draw_what_called_ones_draw(dev_folder: Path) -> None:
    """Different prompts, seeds, guidances and progress, in turn through the same buffers."""
    recorder = Recordings()

    async def draw(engine: Engine) -> list[bytes]:
        alone = [
            await engine.generate(
                make_job(f"{n}", prompt=f"picture {n}", seeds=(n,), guidance=1.0 + n, previews=2)
            )
            for n in range(3)
        ]
        crowd = await engine.generate(make_job("crowd", seeds=(4, 5, 6)))
        return [image.image for result in (*alone, crowd) for image in result.images]

    async with engine(dev_folder, None) as plain, engine(dev_folder, recorder) as recorded:
        await recorded.warm_up([(64, 64)])
        assert await draw(recorded) == await draw(plain)
        stats = recorded.stats()
        assert (plain.stats().graph_replays, plain.stats().graph_misses) == (0, 0)
    assert recorder.batches == [8, 7, 6, 5, 4, 3, 2, 1]
    assert (stats.graph_replays, stats.graph_misses) == (3 * 3 + 3, 0)


async def test_what_was_not_recorded_runs_as_ever_and_is_counted(dev_folder: Path) -> None:
    async with engine(dev_folder, Recordings(), step_batch_max_samples=2) as made:
        await made.warm_up([(64, 64), (96, 64)])
        assert (made.stats().graph_replays, made.stats().graph_misses) == (0, 0)
        await made.generate(make_job(steps=2))
        await made.generate(make_job(width=96, steps=5))
        assert (made.stats().graph_replays, made.stats().graph_misses) == (2, 5)


async def test_batches_too_large_to_record_are_not_tried_again(dev_folder: Path) -> None:
    recorder = Recordings(most=2)
    async with engine(dev_folder, recorder, step_batch_max_samples=4) as made:
        await made.warm_up([(64, 64)])
        await made.generate(make_job(seeds=(1, 2, 3, 4), steps=2))
        stats = made.stats()
    assert recorder.batches == [2, 1]
    assert (stats.graph_replays, stats.graph_misses) == (4, 0)


def test_a_replay_neither_reads_old_inputs_nor_leaves_its_outcome_to_the_next() -> None:
    def call(inputs: Inputs) -> torch.Tensor:
        states, latents = inputs["encoder_hidden_states"], inputs["hidden_states"]
        assert states is not None
        assert latents is not None
        return latents * 10 + states

    def inputs(value: float, samples: int = 2) -> Inputs:
        one = torch.full((samples, 3), value)
        return {"hidden_states": one, "encoder_hidden_states": one + 1, "guidance": None}

    graphs = StepGraphs(call, Recordings())
    graphs.capture((64, 64), inputs(0.0))
    first, second = graphs.replay((64, 64), inputs(1.0)), graphs.replay((64, 64), inputs(2.0))
    assert first is not None
    assert second is not None
    assert first.unique().tolist() == [12.0]
    assert second.unique().tolist() == [23.0]
    assert graphs.replay((64, 96), inputs(1.0)) is None
    assert graphs.replay((64, 64), inputs(1.0, samples=3)) is None
    assert (graphs.replays, graphs.misses) == (2, 2)


def test_graphs_keep_the_memory_of_their_largest_batch_for_good() -> None:
    config = on_cuda(step_batch_max_samples=4)
    plain = memory.divide(FOOTPRINT, GIB, EngineConfig())
    shared = memory.divide(FOOTPRINT, GIB, config)
    assert shared.graph_samples == {(64, 64): 4}
    assert plain.available_bytes - shared.available_bytes == FOOTPRINT.step_bytes(64, 64, 4)
    one = FOOTPRINT.step_bytes(64, 64, 1)
    tight = memory.divide(FOOTPRINT, 5 * one, config)
    assert tight.graph_samples == {(64, 64): 2}  # half of the memory at most
    with pytest.raises(ConfigError, match=r"optimize.cuda_graphs.*64x64"):
        memory.divide(FOOTPRINT, one, config)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({}, "optimize.cuda_graphs needs a CUDA device"),
        ({"device": "cuda", "offload": "model"}, "optimize.cuda_graphs: offload model"),
        ({"device": "cuda", "offload": "group"}, "optimize.cuda_graphs: offload group"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EngineConfig(optimize=OptimizeConfig(cuda_graphs=("64x64",)), **wrong)


def test_weights_that_stay_may_be_recorded_while_the_text_encoder_streams() -> None:
    optimize = OptimizeConfig(cuda_graphs=("64x64",))
    assert EngineConfig(device="cuda", offload="text_encoder", optimize=optimize)


async def test_recorded_and_decoded_beside_at_once(dev_folder: Path) -> None:
    optimize = OptimizeConfig(cuda_graphs=("64x64",), overlap_decode=True)
    config = on_cuda(torch_threads=1, budget_measure_s=0, memory_limit_gib=1)
    config = config.model_copy(update={"optimize": optimize})
    pipeline = load_pipeline(str(dev_folder), "cpu", "fp32")
    async with Engine(
        pipeline, config, text_tokens_max=TEXT_TOKENS, recorder=Recordings()
    ) as both, engine(dev_folder, None) as plain:  # fmt: skip
        await both.warm_up([(64, 64)])
        jobs = [make_job(f"{n}", steps=2, seeds=(n,), previews=1) for n in range(6)]
        expected = [(await plain.generate(job)).images[0].image for job in jobs]
        assert [(await both.generate(job)).images[0].image for job in jobs] == expected
        crowd = await asyncio.gather(*map(both.generate, jobs))
        assert len(crowd) == 6
        assert both.stats().graph_misses == 0
