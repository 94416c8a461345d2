"""From a `source` to the engine that serves it, loading only what that engine needs.

Data flow: source -> `SimulatedEngine` (no torch at all) or `Engine`. Must not import either before
it is known which.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.config import EngineConfig
from serve_app.engine.core import EngineCore
from serve_app.engine.source import is_simulated


def open_engine(source: str, config: EngineConfig, text_tokens_max: int | None) -> EngineCore:
    """Load a model and start its engine; blocks for as long as loading takes.

    Raises:
        ConfigError: nothing loadable at `source`, or no such device.
    """
    if is_simulated(source):
        from serve_app.engine.simulated import SimulatedEngine

        return SimulatedEngine.load(source, config, text_tokens_max=text_tokens_max)
    with _uncollected():
        from serve_app.engine.engine import Engine

    return Engine.load(source, config, text_tokens_max=text_tokens_max)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without garbage collection, and leave what was imported out of later collections.

    Torch, diffusers and transformers make millions of objects that stay. Searching them for garbage
    again and again takes a fifth of the import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()
