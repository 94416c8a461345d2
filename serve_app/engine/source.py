"""Where a model's files are, and what they say about it, without loading any weights.

Data flow: `source` from the configuration -> local folder or hub id -> JSON configs -> `ModelInfo`.
Must not import torch or diffusers: the gateway answers `GET /v1/models/{id}` from here while no
replica runs.
"""

import json
from pathlib import Path
from typing import Any

from serve_app.config import AppConfig
from serve_app.engine.job import ModelInfo
from serve_app.errors import ConfigError
from serve_app.loopback import is_loopback
from serve_app.registry import EMBEDDED_SOURCE

RANDOM_PREFIX = "random:"
"""`random:schnell`, `random:dev`, `random:tiny-schnell`, `random:tiny-dev`: no files at all."""
RANDOM_SOURCES = tuple(
    f"{RANDOM_PREFIX}{scale}{shape}" for scale in ("", "tiny-") for shape in ("schnell", "dev")
)

SIMULATED_PREFIX = "simulated:"
"""`simulated:h200:schnell` and so on: a device and a model that only take their time."""
SIMULATED_DEVICES = ("h200", "h100", "l4")
SIMULATED_SOURCES = tuple(
    f"{SIMULATED_PREFIX}{device}:{shape}"
    for device in SIMULATED_DEVICES
    for shape in ("schnell", "dev")
)

T5_TOKENS_MAX = 512  # FluxPipeline.check_inputs refuses more
T5_TOKENS_DISTILLED = 256  # FLUX.1-schnell was trained on 256; its tokenizer still says 512
PATCH_PX = 2  # FluxPipeline packs 2x2 latents into one token
RANDOM_SIZE_MULTIPLE_PX = 16  # the VAE of FLUX.1 and of its random stand-ins scales by 8

_EMBEDDED_FOLDER = Path(__file__).parent.parent / "models" / EMBEDDED_SOURCE.partition(":")[2]


def find(source: str) -> Path | str:
    """Return the folder of a local model, or the id of one on the hub.

    Raises:
        ConfigError: `source` is neither.
    """
    folder = _EMBEDDED_FOLDER if source == EMBEDDED_SOURCE else Path(source).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if source == EMBEDDED_SOURCE or folder.exists() or not _may_be_hub_id(source):
        raise ConfigError(f"model source {source!r}: no diffusers folder (model_index.json) there")
    return source


def model_info(source: str, text_tokens_max: int | None = None) -> ModelInfo:
    """Read what the model's own configs say; for a hub id, download those few small files.

    Args:
        source: as in the configuration.
        text_tokens_max: caps the tokens of the T5 encoder; None takes what suits the model.

    Raises:
        ConfigError: the source or one of its files cannot be read.
    """
    if source.startswith((RANDOM_PREFIX, SIMULATED_PREFIX)):
        guidance = check_made_up(source).endswith("dev")
        tokens = text_tokens(T5_TOKENS_MAX, guidance, text_tokens_max)
        return ModelInfo(RANDOM_SIZE_MULTIPLE_PX, tokens, guidance)
    found = find(source)
    vae = _read_json(found, "vae/config.json")
    transformer = _read_json(found, "transformer/config.json")
    tokenizer = _read_json(found, "tokenizer_2/tokenizer_config.json")
    guidance = bool(transformer.get("guidance_embeds", False))
    return ModelInfo(
        size_multiple_px=size_multiple_px(len(vae["block_out_channels"])),
        text_tokens_max=text_tokens(tokenizer["model_max_length"], guidance, text_tokens_max),
        guidance=guidance,
    )


def check_made_up(source: str) -> str:
    """Return a `random:` or `simulated:` source that exists.

    Raises:
        ConfigError: it does not.
    """
    known = SIMULATED_SOURCES if is_simulated(source) else RANDOM_SOURCES
    if source not in known:
        raise ConfigError(f"model source {source!r}: must be one of {', '.join(known)}")
    return source


def is_simulated(source: str) -> bool:
    """Whether a source draws placeholders."""
    return source.startswith(SIMULATED_PREFIX)


def simulated_problem(config: AppConfig, host: str | None) -> str | None:
    """Why these models must not be served on this host (None: everywhere), if they must not."""
    ids = [model.id for model in config.models if is_simulated(model.source)]
    if not ids or config.allow_simulated or is_loopback(host):
        return None
    return (
        f"args.models: {', '.join(ids)}: a simulated model draws placeholders, so HTTP must be on "
        f"loopback, not on {host!r}; args.allow_simulated: true serves it all the same"
    )


def size_multiple_px(vae_levels: int) -> int:
    """What width and height must be multiples of: every VAE level but one halves, packing too."""
    return int(PATCH_PX * 2 ** (vae_levels - 1))


def text_tokens(model_max_length: int, guidance: bool, cap: int | None) -> int:
    """Tokens of the T5 encoder: what the tokenizer, diffusers, the model and `cap` all allow."""
    if cap is None:
        cap = T5_TOKENS_MAX if guidance else T5_TOKENS_DISTILLED
    return min(int(model_max_length), T5_TOKENS_MAX, cap)


def _may_be_hub_id(source: str) -> bool:
    """Whether it reads `owner/name`: one slash, and not the start of a path."""
    owner, slash, name = source.partition("/")
    return bool(slash and name) and "/" not in name and owner not in ("", ".", "..", "~")


def _read_json(found: Path | str, name: str) -> dict[str, Any]:
    try:
        path = found / name if isinstance(found, Path) else _download(found, name)
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model source {str(found)!r}: cannot read {name}: {error}") from error
    return read


def _download(hub_id: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download  # only a hub id needs it, and it imports slowly

    return Path(hf_hub_download(hub_id, name))
