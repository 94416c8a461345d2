"""What is known about each model id: the defaults that a configuration need not repeat.

Plain data, merged by `config.ModelConfig`; imports nothing of this package. Figures follow the
model cards: https://huggingface.co/black-forest-labs/FLUX.1-schnell and /FLUX.1-dev.
"""

from typing import Any

EMBEDDED_SOURCE = "embedded:flux-mini"
"""`source` of the model that ships inside the package."""

FAST_QUALITY_STEPS: dict[Any, int] = {
    "low": 2,
    "medium": 4,
    "standard": 4,
    "auto": 4,
    "hd": 8,
    "high": 8,
    "xhigh": 8,
    "max": 8,
}
"""`quality` of models distilled to a few steps; also the default of a model not listed here."""

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "flux-mini": {
        "source": EMBEDDED_SOURCE,
        "reference_steps": 4,
        "quality_steps": FAST_QUALITY_STEPS,
        "min_edge_px": 128,
        "max_edge_px": 1024,
        "max_pixels": 1024 * 1024,
    },
    "black-forest-labs/FLUX.1-schnell": {
        "source": "black-forest-labs/FLUX.1-schnell",
        "owned_by": "black-forest-labs",
        "reference_steps": 4,
        "quality_steps": FAST_QUALITY_STEPS,
        "text_tokens_max": 256,  # the length it was distilled with
        "num_gpus": 1,
    },
    "black-forest-labs/FLUX.1-dev": {
        "source": "black-forest-labs/FLUX.1-dev",
        "owned_by": "black-forest-labs",
        "reference_steps": 28,
        "quality_steps": {
            "low": 16,
            "medium": 28,
            "standard": 28,
            "auto": 28,
            "hd": 50,
            "high": 50,
            "xhigh": 50,
            "max": 50,
        },
        "guidance_scale": 3.5,
        "text_tokens_max": 512,
        "num_gpus": 1,
    },
}
