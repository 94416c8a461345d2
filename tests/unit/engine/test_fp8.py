"""fp8 with torchao's real kernels: slowly, on a CPU; only its check of the hardware is out."""

import asyncio
import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import TEXT_TOKENS, make_job, pixels, quiet

from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine import optimize
from serve_app.engine.engine import Engine
from serve_app.engine.load import load_pipeline

pytestmark = pytest.mark.filterwarnings("default")  # torchao's own, about future torch versions

COARSE = 2.0
"""Mean difference of 8-bit levels that fp8 may make (measured: 0.6) where levels scatter by 43."""


@pytest.fixture(autouse=True)
def any_device_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda *_: None)
    monkeypatch.setattr(optimize, "check_fp8", lambda _: None)


@pytest.fixture
def plain() -> FluxPipeline:
    return quiet(load_pipeline("random:tiny-dev", "cpu", "bf16"))


def made_of(pipeline: FluxPipeline, precision: str = "bf16", **switches: Any) -> Engine:
    config = EngineConfig(
        torch_threads=1,
        precision=precision,
        budget_measure_s=0,
        step_batch_max_samples=4,
        optimize=OptimizeConfig(**switches),
    )
    return Engine(pipeline, config, text_tokens_max=TEXT_TOKENS, compile_backend="eager")


async def drawn(engine: Engine, *jobs: Any) -> list[np.ndarray]:
    results = await asyncio.gather(*(engine.generate(job) for job in jobs))
    return [pixels(image.image).astype(int) for result in results for image in result.images]


@pytest.mark.parametrize("fused", [False, True])
async def test_fp8_draws_nearly_the_same_and_neighbours_do_not_change_it(
    plain: FluxPipeline, fused: bool
) -> None:
    fp8 = copy.deepcopy(plain)
    exact = made_of(plain)  # fp8 has to be compiled, this has not
    coarse = made_of(fp8, "fp8", compile_transformer="dynamic", fuse_qkv=fused)
    try:
        [wanted] = await drawn(exact, make_job())
        [alone] = await drawn(coarse, make_job())
        others = make_job("other", prompt="a cat", seeds=(1, 2))
        [crowded, *_] = await drawn(coarse, make_job(), others)
    finally:
        await exact.close()
        await coarse.close()
    assert wanted.std() > 0
    assert 0 < np.abs(alone - wanted).mean() < COARSE
    assert np.abs(crowded - alone).max() <= 1


def test_fused_products_are_in_fp8_and_the_separate_ones_are_gone(plain: FluxPipeline) -> None:
    optimize.optimize(
        plain,
        EngineConfig(
            precision="fp8",
            optimize=OptimizeConfig(fuse_qkv=True, compile_transformer="dynamic"),
        ),
        backend="eager",
    )
    weights = {
        name: type(module.weight).__name__
        for name, module in plain.transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".attn." in name
    }
    assert weights["transformer_blocks.0.attn.to_qkv"] == "Float8Tensor"
    assert weights["transformer_blocks.0.attn.to_added_qkv"] == "Float8Tensor"
    assert weights["single_transformer_blocks.0.attn.to_qkv"] == "Float8Tensor"
    assert not [name for name in weights if name.endswith((".to_q", ".to_k", ".to_v", "_proj"))]
