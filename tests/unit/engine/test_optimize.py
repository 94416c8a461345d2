import asyncio
import sys
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import TEXT_TOKENS, make_job, pixels, quiet

from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine import load, optimize
from serve_app.engine.engine import Engine
from serve_app.engine.load import load_pipeline, place
from serve_app.engine.optimize import Compiled
from serve_app.errors import ConfigError

Switched = Callable[..., Engine]


@pytest.fixture
async def switched() -> AsyncIterator[Switched]:
    """Engines over a tiny random model with switches on; its compiler only traces."""
    made: list[Engine] = []

    def make(offload: load.Offload = "none", **switches: Any) -> Engine:
        pipeline = quiet(load_pipeline("random:tiny-dev", "cpu", "fp32", offload))
        config = EngineConfig(
            torch_threads=1,
            step_batch_max_samples=2,  # the compiler takes seconds for each
            budget_measure_s=0.05,
            optimize=OptimizeConfig(**({"channels_last_vae": False} | switches)),
        )
        engine = Engine(pipeline, config, text_tokens_max=TEXT_TOKENS, compile_backend="eager")
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()


async def picture(engine: Engine, **changes: Any) -> np.ndarray:
    [image] = (await engine.generate(make_job(**changes))).images
    return pixels(image.image).astype(int)


@pytest.mark.parametrize(
    "switches",
    [
        {"fuse_qkv": True},
        {"channels_last_vae": True},
        {"attention": "best"},
        {"compile_transformer": "static", "compile_vae": True},
        {"offload": "text_encoder"},
        {"offload": "model"},
        {"offload": "group"},
    ],
    ids=str,
)
async def test_a_switch_does_not_change_the_picture(
    switched: Switched, switches: dict[str, Any]
) -> None:
    plain, other = switched(), switched(**switches)
    jobs = [make_job("small", steps=2), make_job("wide", steps=2, width=96, prompt="a cat")]
    for job in jobs:
        first, second = await asyncio.gather(plain.generate(job), other.generate(job))
        before, after = (pixels(one.images[0].image).astype(int) for one in (first, second))
        assert np.abs(before - after).max() <= 1
        assert before.std() > 0


def test_fused_products_take_the_place_of_the_separate_ones(pipeline: FluxPipeline) -> None:
    def parameters() -> int:
        return sum(weight.numel() for weight in pipeline.transformer.parameters())

    before = parameters()
    optimize.fuse_qkv(pipeline)
    assert parameters() == before


@pytest.mark.parametrize("mode", ["dynamic", "static"])
async def test_nothing_is_compiled_after_the_warm_up(switched: Switched, mode: str) -> None:
    plain, engine = switched(), switched(compile_transformer=mode)
    await engine.warm_up([(64, 64), (96, 64)])
    jobs = [
        make_job(f"{n}", seeds=tuple(range(n)), width=width, steps=1 + n % 2)
        for n in (1, 2, 3)
        for width in (64, 96)
    ]
    await asyncio.gather(*(engine.generate(job) for job in jobs))
    difference = await picture(engine, steps=2) - await picture(plain, steps=2)
    assert np.abs(difference).max() <= 1
    stats = engine.stats()
    assert stats.recompiles == 0
    assert stats.eager_calls == 0


async def test_a_size_that_was_not_warmed_up_waits_for_no_compiler(switched: Switched) -> None:
    engine = switched(compile_transformer="static")
    await engine.warm_up([(64, 64)])
    await picture(engine, width=128, height=96)
    stats = engine.stats()
    assert stats.recompiles == 0
    assert stats.eager_calls > 0


async def test_a_compilation_after_the_warm_up_shows(switched: Switched) -> None:
    engine = switched(compile_transformer="static")
    await engine.warm_up([(64, 64)])
    compiled = engine._compiled
    with compiled.call(64, 64, 1):  # a bucket taken for warm that is not
        torch.compile(torch.sin, backend="eager")(torch.ones(3))
    assert engine.stats().recompiles == 1


def test_without_compiled_code_nothing_is_counted() -> None:
    compiled = Compiled()
    with compiled.call(64, 64, 1):
        pass
    compiled.freeze()
    with compiled.call(96, 64, 1):
        pass
    assert (compiled.eager_calls, compiled.recompiles, list(compiled.batches(8))) == (0, 0, [])


@pytest.mark.parametrize("attention", ["cudnn", "flash3"])
def test_kernels_that_are_not_there_are_named(pipeline: FluxPipeline, attention: str) -> None:
    config = EngineConfig(optimize=OptimizeConfig(attention=attention))
    with pytest.raises(ConfigError, match=attention):
        optimize.optimize(pipeline, config)


def test_fp8_needs_a_gpu_that_has_it(pipeline: FluxPipeline) -> None:
    with pytest.raises(ConfigError, match="fp8"):
        optimize.quantize_fp8(pipeline, torch.device("cpu"))


def test_fp8_takes_the_products_of_the_blocks_and_no_modulation(
    pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    fake = types.ModuleType("torchao.quantization")
    fake.Float8DynamicActivationFloat8WeightConfig = dict  # type: ignore[attr-defined]
    fake.PerRow = lambda: "per row"  # type: ignore[attr-defined]
    fake.quantize_ = lambda module, config, filter_fn: asked.update(  # type: ignore[attr-defined]
        config, names=[n for n, m in module.named_modules() if filter_fn(m, n)]
    )
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", fake)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    optimize.quantize_fp8(pipeline, torch.device("cuda"))
    assert asked["granularity"] == "per row"
    assert "transformer_blocks.0.attn.to_q" in asked["names"]
    assert "single_transformer_blocks.0.proj_out" in asked["names"]
    assert not [name for name in asked["names"] if "norm" in name or "embed" in name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError, match="fp8"):
        optimize.quantize_fp8(pipeline, torch.device("cuda"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"precision": "fp8"},
        {"offload": "group", "optimize": {"compile_transformer": "static"}},
        {"offload": "group", "optimize": {"compile_vae": True}},
    ],
)
def test_switches_that_exclude_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fp8|group"):
        EngineConfig(**wrong)


def test_offloading_by_turns_keeps_one_of_the_two_large_modules_on_the_device() -> None:
    pipeline = place(load_pipeline("random:tiny-dev", "cpu", "fp32"), "cpu", "model")
    hooks = [pipeline.text_encoder_2._hf_hook, pipeline.transformer._hf_hook]
    assert hooks[0].prev_module_hook.model is pipeline.transformer
    assert hooks[1].prev_module_hook.model is pipeline.text_encoder_2
