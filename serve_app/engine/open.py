"""From a `source` to the engine that serves it, loading only what that engine needs.

Data flow: source -> `SimulatedEngine` (no torch at all) or `Engine`. Must not import either before
it is known which.
"""

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
    from serve_app.engine.engine import Engine

    return Engine.load(source, config, text_tokens_max=text_tokens_max)
