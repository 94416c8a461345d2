"""Wire models: what clients send and get, in OpenAI's shapes. Pydantic only.

Source: OpenAI's OpenAPI file, images section, and what the `openai` and `atoma-sdk` clients really
parse. `null` means absent for every optional field. Unknown fields are tolerated, because clients
and proxies add their own. A known one that would change the picture or the reply, and cannot be
honoured, is refused; `style` and `moderation` are taken, and have no effect.
"""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from serve_app.errors import (
    InvalidType,
    InvalidValue,
    MissingParameter,
    RequestError,
    UnsupportedValue,
)

SEED_MAX = 2**32 - 1
"""Seeds are unsigned 32-bit: every client language holds them exactly, JSON's doubles too."""
USER_MAX_CHARS = 512
"""`user` is kept for abuse reports; an id is far shorter."""
MODEL_NAME_MAX_CHARS = 200
PROMPT_MAX_CHARS = 32_000
"""The API's own ceiling; a model's `prompt_max_chars` is lower."""

OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["url", "b64_json"]
Quality = Literal["low", "medium", "standard", "auto", "hd", "high", "xhigh", "max"]
Model = TypeVar("Model", bound=BaseModel)


class WireRequest(BaseModel):
    """Strict types (`"1"` and `true` are no integers), unknown fields ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, protected_namespaces=())


class ImageRequest(WireRequest):
    """Body of `POST /v1/images/generations` and of `POST /v1/images/quote`."""

    prompt: str = Field(
        min_length=1, max_length=PROMPT_MAX_CHARS, description="What the picture shows."
    )
    model: Annotated[str, StringConstraints(max_length=MODEL_NAME_MAX_CHARS)] | None = Field(
        None, description="Model id or alias; the server's default model when absent."
    )
    n: int | None = Field(None, ge=1, le=10, description="Number of images; 1 when absent.")
    size: str | None = Field(
        None, max_length=20, description="`WIDTHxHEIGHT` in pixels, or `auto`."
    )
    quality: Quality | None = Field(None, description="Chooses the number of denoising steps.")
    response_format: ResponseFormat | None = Field(
        None, description="`url` (default): a signed link; `b64_json`: the bytes in the reply."
    )
    output_format: OutputFormat | None = Field(None, description="`png` (default), `jpeg`, `webp`.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of JPEG and WebP, 0 to 100; 100 when absent."
    )
    seed: int | None = Field(
        None, ge=0, le=SEED_MAX, description="Same seed, same picture; image i uses seed + i."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=200, description="Denoising steps; overrides `quality`."
    )
    steps: int | None = Field(
        None, ge=1, le=200, description="Another name of `num_inference_steps`, which wins."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=20, allow_inf_nan=False, description="Ignored by distilled models."
    )
    user: Annotated[str, StringConstraints(max_length=USER_MAX_CHARS)] | None = Field(
        None, description="Your end user's id; logged, never a metrics label."
    )
    background: Literal["transparent", "opaque", "auto"] | None = Field(
        None, description="`auto` or `opaque`; `transparent` is not supported."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events, image by image.")
    partial_images: int | None = Field(
        None,
        ge=0,
        le=3,
        description="Previews of each image, with `stream` only; at most steps - 1 are made.",
    )
    stream_progress: bool | None = Field(
        None,
        description="With `stream` only: also events about the queue and the steps. Not OpenAI's.",
    )
    negative_prompt: str | None = Field(
        None, max_length=PROMPT_MAX_CHARS, description="Not supported by FLUX; must be empty."
    )
    style: str | None = Field(None, max_length=64, description="Accepted and without effect.")
    moderation: Literal["low", "auto"] | None = Field(
        None, description="Accepted and without effect."
    )


class ImageData(BaseModel):
    """One image. `url` is always a string: clients exist that require it."""

    url: str = Field(description="Signed link; empty only where no image store is configured.")
    b64_json: str | None = Field(None, description="The image, base64, when asked for.")


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """OpenAI's usage with compute units in the place of output tokens."""

    input_tokens: int
    output_tokens: int = Field(description="Compute units charged.")
    total_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails
    compute_units: int = Field(description="Compute units charged.")

    @classmethod
    def of(cls, units: int) -> Self:
        """The usage of so many compute units."""
        return cls(
            input_tokens=0,
            output_tokens=units,
            total_tokens=units,
            input_tokens_details=TokenDetails(text_tokens=0, image_tokens=0),
            output_tokens_details=TokenDetails(text_tokens=0, image_tokens=units),
            compute_units=units,
        )


class ImagesResponse(BaseModel):
    """Reply of `POST /v1/images/generations`."""

    created: int = Field(description="Unix time in seconds.")
    data: list[ImageData] = Field(description="The images, in order; exactly `n`.")
    model: str = Field(description="Id of the model that drew them.")
    size: str = Field(description="Actual `WIDTHxHEIGHT`.")
    quality: Quality
    output_format: OutputFormat
    background: Literal["opaque"] = "opaque"
    seeds: list[int] = Field(description="Seed of each image.")
    steps: int = Field(description="Denoising steps.")
    usage: Usage


class QuoteResponse(BaseModel):
    """Reply of `POST /v1/images/quote`: what the same body would cost. Charges nothing."""

    model: str
    size: str
    steps: int
    n: int
    units: int = Field(description="Compute units.")
    affordable: bool = Field(description="Whether the account could hold them now.")
    estimated_s: float | None = Field(
        None, description="Seconds until it would be done, if sent now; absent when unknown."
    )


class AccountResponse(BaseModel):
    """Reply of `GET /v1/account`, in compute units."""

    id: str
    name: str
    granted: int
    captured: int
    held: int
    available: int


class ModelCapabilities(BaseModel):
    """What a model accepts; sizes in pixels."""

    size_multiple: int
    min_edge: int
    max_edge: int
    max_pixels: int
    default_size: str
    max_images: int
    reference_steps: int
    max_steps: int
    quality_steps: dict[Quality, int]
    guidance: bool
    text_tokens_max: int
    prompt_max_chars: int


class ModelObject(BaseModel):
    """OpenAI's model object, plus what the model accepts."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    aliases: list[str]
    capabilities: ModelCapabilities


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class ErrorDetail(BaseModel):
    """All four keys are always there, as OpenAI's schema requires."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class HealthResponse(BaseModel):
    message: str


def parse_request(model: type[Model], data: dict[str, Any]) -> Model:
    """Validate a decoded body, or raise the `RequestError` that names the first bad field."""
    present = {key: value for key, value in data.items() if value is not None}
    try:
        return model.model_validate(present)
    except ValidationError as exc:
        raise _request_error(exc) from None


def _request_error(exc: ValidationError) -> RequestError:
    first = exc.errors(include_url=False, include_input=False)[0]
    param = str(first["loc"][0]) if first["loc"] else ""
    kind, text = first["type"], first["msg"]
    if kind == "missing":
        return MissingParameter(f"Missing required parameter: '{param}'.").at(param)
    if kind.endswith("_type"):
        return InvalidType(f"Invalid type for '{param}': {text}.").at(param)
    if kind == "literal_error" and param in {"output_format", "background", "moderation"}:
        return UnsupportedValue(f"Unsupported value for '{param}': {text}.").at(param)
    return InvalidValue(f"Invalid value for '{param}': {text}.").at(param)
