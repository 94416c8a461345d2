"""From a request to a plan: which model, how many samples of what size and steps, at what price.

Data flow: `schema.ImageRequest` -> `plan_job` -> `Plan` -> the ledger's hold and the engine's job.
Pure: no clock, no I/O; the only randomness is the seed source handed in. Must not import Ray, torch
or HTTP.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from serve_app.config import ModelConfig
from serve_app.engine.job import GenerationJob, ModelInfo
from serve_app.errors import (
    ConfigError,
    InvalidValue,
    ModelNotAllowed,
    ModelNotFound,
    RequestError,
    UnsupportedValue,
)
from serve_app.metering.pricing import compute_units
from serve_app.schema import SEED_MAX, ImageRequest, OutputFormat, Quality, ResponseFormat


@dataclass(frozen=True)
class ServedModel:
    """A configured model together with what its folder says."""

    config: ModelConfig
    info: ModelInfo

    def __post_init__(self) -> None:
        edges = (int(edge) for edge in self.config.default_size.split("x"))
        if any(edge % self.info.size_multiple_px for edge in edges):
            multiple = self.info.size_multiple_px
            raise ConfigError(f"default_size of {self.config.id}: not multiples of {multiple} px")


class Catalogue:
    """The served models by every name that a request may use."""

    def __init__(self, models: tuple[ServedModel, ...]) -> None:
        self.models = models
        self._by_name = {name: model for model in models for name in model.config.names}

    def find(self, name: str | None, allowed: Collection[str] | None = None) -> ServedModel:
        """The model of an id or alias, or when absent the first one among the `allowed` ids.

        Raises `ModelNotFound`, or `ModelNotAllowed` for a model that is not allowed.
        """
        may_use = self.among(allowed)
        if name is None and may_use:
            return may_use[0]
        model = self.models[0] if name is None else self._by_name.get(name)
        if model is None:
            known = ", ".join(sorted(name for one in may_use for name in one.config.names))
            error = ModelNotFound(f"The model '{name}' does not exist. Available: {known}.")
            raise error.at("model")
        if model not in may_use:
            text = f"This API key may not use the model '{model.config.id}'."
            raise ModelNotAllowed(text).at("model")
        return model

    def among(self, allowed: Collection[str] | None) -> tuple[ServedModel, ...]:
        """The served models that a key limited to `allowed` ids may use; None is all."""
        if allowed is None:
            return self.models
        return tuple(model for model in self.models if model.config.id in allowed)


@dataclass(frozen=True)
class Plan:
    """A request with every default filled in and every limit checked."""

    model: ServedModel
    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    quality: Quality
    seeds: tuple[int, ...]
    output_format: OutputFormat
    output_compression: int
    response_format: ResponseFormat
    partial_images: int
    """Previews of each image, while streaming."""
    progress: bool
    """Whether a stream also tells of the queue and the steps."""
    units: int
    replayable: bool = False
    """Whether the reply is kept under an idempotency key, and its images with it."""

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def units_for(self, images: int) -> int:
        """Compute units of `images` of the samples."""
        return compute_units(
            images, self.width, self.height, self.steps, self.model.config.reference_steps
        )

    def units_of_next(self, done: int) -> int:
        """Compute units of one more of the samples after `done`; such shares add up."""
        return self.units_for(done + 1) - (self.units_for(done) if done else 0)

    def job(
        self, job_id: str, account: str, timeout_s: float, request_id: str = ""
    ) -> GenerationJob:
        return GenerationJob(
            job_id=job_id,
            request_id=request_id,
            prompt=self.prompt,
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance=self.guidance,
            seeds=self.seeds,
            output_format=self.output_format,
            output_compression=self.output_compression,
            account=account,
            timeout_s=timeout_s,
            previews=self.partial_images,
            progress=self.progress,
        )


def plan_job(
    request: ImageRequest,
    catalogue: Catalogue,
    random_seed: Callable[[], int],
    allowed: Collection[str] | None = None,
) -> Plan:
    """Resolve a request, or raise the `RequestError` that names the field at fault.

    `allowed` are the ids of the models that its key may use; None is all.
    """
    model = catalogue.find(request.model, allowed)
    config = model.config
    _refuse_unsupported(request)
    if len(request.prompt) > config.prompt_max_chars:
        text = f"Prompt has {len(request.prompt)} characters; the most is {config.prompt_max_chars}"
        raise InvalidValue(f"{text}.").at("prompt")
    if not request.prompt.strip():
        raise InvalidValue("Prompt is blank.").at("prompt")
    n = request.n or 1
    if n > config.max_images:
        raise InvalidValue(f"'n' must be at most {config.max_images}.").at("n")
    width, height = _size(request.size, model)
    quality: Quality = request.quality or "auto"
    steps = request.num_inference_steps or request.steps or config.quality_steps[quality]
    if steps > config.max_steps:
        name = "num_inference_steps" if request.num_inference_steps else "steps"
        raise InvalidValue(f"'{name}' must be at most {config.max_steps}.").at(name)
    guidance = request.guidance_scale
    first_seed = random_seed() if request.seed is None else request.seed
    return Plan(
        model=model,
        prompt=request.prompt,
        width=width,
        height=height,
        steps=steps,
        guidance=config.guidance_scale if guidance is None else guidance,
        quality=quality,
        seeds=tuple((first_seed + i) % (SEED_MAX + 1) for i in range(n)),
        output_format=request.output_format or "png",
        output_compression=100
        if request.output_compression is None
        else request.output_compression,
        response_format=request.response_format or "url",
        partial_images=request.partial_images or 0,
        progress=request.stream_progress or False,
        units=compute_units(n, width, height, steps, config.reference_steps),
    )


def _refuse_unsupported(request: ImageRequest) -> None:
    """A field that cannot be honoured is refused: ignoring it would deliver something else."""
    if request.partial_images and not request.stream:
        raise InvalidValue("'partial_images' needs 'stream': true.").at("partial_images")
    if request.stream_progress and not request.stream:
        raise InvalidValue("'stream_progress' needs 'stream': true.").at("stream_progress")
    if request.background == "transparent":
        raise UnsupportedValue("FLUX draws opaque images only.").at("background")
    if request.negative_prompt:
        raise UnsupportedValue("FLUX takes no negative prompt.").at("negative_prompt")
    lossless = (request.output_format or "png") == "png"
    if lossless and request.output_compression not in (None, 100):
        text = "'output_compression' applies to 'jpeg' and 'webp' only; PNG is lossless."
        raise InvalidValue(text).at("output_compression")


def _size(text: str | None, model: ServedModel) -> tuple[int, int]:
    config, multiple = model.config, model.info.size_multiple_px
    wanted = config.default_size if text in (None, "auto") else text
    width, height = _parse_size(wanted or "")
    problem = None
    for edge in (width, height):
        if not config.min_edge_px <= edge <= config.max_edge_px:
            problem = f"edges must be {config.min_edge_px} to {config.max_edge_px} px"
        elif edge % multiple:
            problem = f"edges must be multiples of {multiple} px"
    if problem is None and width * height > config.max_pixels:
        problem = f"at most {config.max_pixels} pixels"
    if problem:
        raise InvalidValue(f"Size '{wanted}' is not served by '{config.id}': {problem}.").at("size")
    return width, height


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    digits = all(re.fullmatch("[1-9][0-9]{1,4}", part) for part in parts)
    if len(parts) != 2 or not digits:
        error: RequestError = InvalidValue("'size' must be 'auto' or WIDTHxHEIGHT in pixels.")
        raise error.at("size")
    return int(parts[0]), int(parts[1])
