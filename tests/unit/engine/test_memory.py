from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import MakeEngine, make_job
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import EngineConfig
from serve_app.engine import memory
from serve_app.engine.memory import GIB, Footprint, MemoryBudget
from serve_app.errors import InvalidValue

FLUX_1 = Footprint(
    bytes_per_token=memory.TOKEN_WIDTHS * 3072 * 2,
    bytes_per_pixel=memory.VAE_MAPS * 256 * 2,
    text_tokens=512,
    token_px=16,
)
edges = st.integers(1, 32).map(lambda n: n * 64)


def test_flux_1_fits_a_card_of_80_gb_and_not_one_of_24() -> None:
    weights = 32 * memory.GIB
    large = MemoryBudget(FLUX_1, 80 * memory.GIB - weights)
    assert large.samples_max(1024, 1024) >= 8
    assert MemoryBudget(FLUX_1, memory.GIB).samples_max(2048, 2048) == 0


@given(height=edges, width=edges, available=st.integers(0, 2**40))
def test_the_largest_batch_fits_and_one_more_does_not(
    height: int, width: int, available: int
) -> None:
    budget = MemoryBudget(FLUX_1, available)
    most = budget.samples_max(height, width)
    if most:
        assert FLUX_1.step_bytes(height, width, most) <= available + most
        assert FLUX_1.step_bytes(height, width, most + 1) > available - most - 1
        assert FLUX_1.decode_bytes(height, width) <= available


def test_the_footprint_is_read_off_the_model(pipeline: FluxPipeline) -> None:
    found = Footprint.of(pipeline, 24)
    assert found.token_px == 16
    assert found.bytes_per_token == memory.TOKEN_WIDTHS * 32 * 4
    assert found.bytes_per_pixel == memory.VAE_MAPS * 8 * 4


async def test_a_size_that_can_never_fit_is_refused_with_the_reason(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(memory_limit_gib=0.01)
    with pytest.raises(InvalidValue, match="memory") as refusal:
        await engine.generate(make_job(width=1024, height=1024))
    assert refusal.value.param == "size"
    await engine.generate(make_job())


def test_free_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, now = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_CGROUP_MAX", limit)
    monkeypatch.setattr(memory, "_CGROUP_NOW", now)
    host = memory.free_bytes("cpu")
    assert host > 0
    limit.write_text("3000\n")
    now.write_text("1000\n")
    assert memory.free_bytes("cpu") == 2000
    limit.write_text("max\n")
    assert memory.free_bytes("cpu") > 2000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    assert memory.free_bytes("cpu") > 2**60


def test_every_kind_of_running_out_is_known() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ):
        assert memory.is_out_of_memory(error)
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    memory.release()


def test_weights_that_are_yet_to_come_to_the_device_count(pipeline: FluxPipeline) -> None:
    plain, turns = (
        memory.budget(pipeline, 24, EngineConfig(offload=offload)).available_bytes
        for offload in ("none", "model")
    )
    assert plain > 0
    assert memory.weight_bytes(pipeline.transformer) > 0
    assert turns <= plain * 1.1  # other programs come and go
    assert memory.budget(pipeline, 24, EngineConfig(memory_limit_gib=1)).available_bytes < GIB
