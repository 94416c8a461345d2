"""Memory on a GPU: the estimate holds, and running out is survived."""

import numpy as np
import pytest
import torch
from gpu_kit import draw, engine, make_job, true_size

from serve_app.engine.load import load_pipeline
from serve_app.engine.memory import GIB, Footprint
from serve_app.engine.sampler import Sampler
from serve_app.engine.text import PromptEncoder
from serve_app.errors import InvalidValue


@true_size
@pytest.mark.parametrize(("px", "samples"), [(256, 8), (512, 4), (1024, 1), (1024, 2), (2048, 1)])
def test_the_estimate_is_above_the_measured_peak_and_not_far(px: int, samples: int) -> None:
    pipeline = load_pipeline("random:schnell", "cuda", "bf16")
    footprint = Footprint.of(pipeline, 256)
    [vectors] = PromptEncoder(pipeline, 256, 1).encode(["a red circle"])
    sampler = Sampler(pipeline, "cuda")
    batch = [sampler.start(vectors, px, px, 2, 0.0, seed) for seed in range(samples)]

    def peak(call: str) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sampler.step(batch) if call == "step" else sampler.decode(batch[0])
        return torch.cuda.max_memory_allocated() - before

    steps, decode = peak("step"), peak("decode")
    print(f"{px} px x {samples}: step {steps / GIB:.2f} GiB, decode {decode / GIB:.2f} GiB")
    assert steps <= footprint.step_bytes(px, px, samples) <= 4 * steps
    assert decode <= footprint.decode_bytes(px, px) <= 4 * decode


def test_running_out_of_memory_fails_nobody_and_halves_the_batches() -> None:
    with engine("random:tiny-dev", step_batch_max_samples=8, memory_limit_gib=64) as made:
        job = make_job(width=1024, height=1024, seeds=tuple(range(8)), steps=2)
        draw(made, make_job(width=1024, height=1024, steps=1))
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        one = made.memory.footprint.step_bytes(1024, 1024, 1)
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (torch.cuda.memory_reserved() + 3 * one) / total)
        )
        try:
            [pictures] = draw(made, job)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert len(pictures) == 8
        assert all(np.isfinite(picture).all() for picture in pictures)
        assert made.healthy()
        print(f"calls out of memory: {made.stats().out_of_memory}")
        draw(made, make_job("after"))


def test_a_size_that_can_never_fit_is_refused() -> None:
    with engine(memory_limit_gib=0.01) as made:
        with pytest.raises(InvalidValue, match="memory"):
            draw(made, make_job(width=2048, height=2048))
        draw(made, make_job(width=64, height=64))


@pytest.mark.parametrize("offload", ["text_encoder", "model", "group"])
def test_offloading_draws_the_same_picture(offload: str) -> None:
    job = make_job()
    with engine() as plain:
        [[before]] = draw(plain, job)
    with engine(offload=offload) as made:
        [[first]] = draw(made, job)
        [[second], [_]] = draw(made, job, make_job("other", prompt="a blue star"))
    assert np.abs(before - first).max() <= 1
    assert np.abs(before - second).max() <= 2


@true_size
@pytest.mark.parametrize(
    ("offload", "most_gib"), [("none", 38), ("text_encoder", 28), ("model", 28), ("group", 8)]
)
def test_the_peak_of_each_way_of_offloading(offload: str, most_gib: int) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with engine("random:schnell", offload=offload) as made:
        draw(made, make_job(width=1024, height=1024, guidance=0.0))
        peak = made.stats().memory_peak_bytes
    print(f"offload {offload}: peak {peak / GIB:.1f} GiB")
    assert peak <= most_gib * GIB
