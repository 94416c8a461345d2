"""What a picture owes to its seed alone, and what to its neighbours and to the switches."""

from typing import Any

import numpy as np
import pytest
import torch
from gpu_kit import COMPILED, draw, engine, make_job, psnr, true_size, warm_up

from serve_app.engine.load import load_pipeline

SOURCES = [
    "embedded:flux-mini",
    "random:tiny-dev",
    pytest.param("random:schnell", marks=true_size),
]
CLOSE_DB = 35.0  # bf16 rounds differently in another batch; the picture stays the same
FP8_DB = 20.0  # published: LPIPS 0.12 to 0.17, so visible to an expert, not another picture


@pytest.mark.parametrize("source", SOURCES)
def test_a_sample_alone_is_bitwise_what_the_pipeline_makes(source: str) -> None:
    pipeline = load_pipeline(source, "cuda", "bf16")
    pipeline.set_progress_bar_config(disable=True)
    job = make_job()
    with engine(source, step_batch_max_samples=1, optimize={"channels_last_vae": False}) as made:
        [[ours]] = draw(made, job)
        tokens = made.info.text_tokens_max
    picture = pipeline(
        job.prompt,
        width=job.width,
        height=job.height,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        max_sequence_length=tokens,
        generator=torch.Generator("cpu").manual_seed(job.seeds[0]),
    ).images[0]
    assert np.array_equal(ours, np.asarray(picture).astype(int))


@pytest.mark.parametrize("source", SOURCES)
def test_a_sample_in_a_batch_is_the_picture_that_it_is_alone(source: str) -> None:
    with engine(source, step_batch_max_samples=8) as made:
        [[alone]] = draw(made, make_job())
        crowd = [make_job(f"{n}", prompt=f"picture {n}", seeds=(n, n + 1)) for n in range(3)]
        [busy], *_ = draw(made, make_job(), *crowd)
    assert psnr(alone, busy) >= CLOSE_DB


@pytest.mark.parametrize(
    "switches",
    [
        {"channels_last_vae": True},
        {"fuse_qkv": True},
        {"attention": "cudnn"},
        COMPILED,
        {**COMPILED, "compile_transformer": "static"},
    ],
    ids=str,
)
def test_a_switch_does_not_change_the_picture(switches: dict[str, Any]) -> None:
    job = make_job()
    # flux-mini: heads of 64, as cuDNN wants them; a trained model, so that errors show
    with engine("embedded:flux-mini", optimize={"channels_last_vae": False}) as plain:
        [[before]] = draw(plain, job)
    with engine("embedded:flux-mini", optimize=switches) as made:
        warm_up(made, (256, 256))
        [[after]] = draw(made, job)
    assert psnr(before, after) >= CLOSE_DB


def test_fp8_draws_the_same_picture_and_neighbours_do_not_change_it() -> None:
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no fp8 units")
    job = make_job()
    with engine("embedded:flux-mini") as plain:
        [[before]] = draw(plain, job)
    with engine("embedded:flux-mini", precision="fp8", optimize=COMPILED) as made:
        warm_up(made, (256, 256))
        [[alone]] = draw(made, job)
        crowd = [make_job(f"{n}", prompt=f"picture {n}", seeds=(n,)) for n in range(3)]
        [busy], *_ = draw(made, job, *crowd)
    assert psnr(before, alone) >= FP8_DB
    assert psnr(alone, busy) >= CLOSE_DB
