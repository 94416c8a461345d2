"""Small random FLUX models, and engines over them that a test can stop between two steps."""

from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import TEXT_TOKENS, Gate, MakeEngine, quiet

from serve_app.config import EngineConfig
from serve_app.engine.engine import Engine
from serve_app.engine.load import load_pipeline
from serve_app.engine.random_weights import build_random_flux


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The same thread count on both sides: another one sums in another order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def schnell_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_flux(tmp_path_factory.mktemp("schnell"), "schnell")


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_flux(tmp_path_factory.mktemp("dev"), "dev")


@pytest.fixture(scope="session")
def loaded_pipeline(dev_folder: Path) -> FluxPipeline:
    """To copy: loading takes three times as long."""
    return load_pipeline(str(dev_folder), "cpu", "fp32")


@pytest.fixture
def pipeline(loaded_pipeline: FluxPipeline) -> FluxPipeline:
    """A dev-shaped one: it has all that schnell has, guidance and a shift that depends on size."""
    parts = loaded_pipeline.components.items()
    own = {name: part if "tokenizer" in name else deepcopy(part) for name, part in parts}
    return quiet(FluxPipeline(**own))


@pytest.fixture
def gate(pipeline: FluxPipeline) -> Iterator[Gate]:
    gate = Gate(pipeline)
    yield gate
    gate.open()


@pytest.fixture
async def make_engine(pipeline: FluxPipeline, gate: Gate) -> AsyncIterator[MakeEngine]:
    """Engines over `pipeline`, closed after the test."""
    made: list[Engine] = []

    def make(**config: Any) -> Engine:
        engine = Engine(
            pipeline,
            EngineConfig(torch_threads=1, **config),
            text_tokens_max=TEXT_TOKENS,
        )
        made.append(engine)
        return engine

    yield make
    gate.open()
    for engine in made:
        await engine.close()
