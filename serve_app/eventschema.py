"""Wire models of a stream: what the `data:` of one event holds. Pydantic only.

Source: OpenAI's OpenAPI file, image streaming. `QueuedEvent` and `ProgressEvent` are not OpenAI's:
they are sent only when the request has `stream_progress`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.schema import OutputFormat, Quality, Usage


class ImageEvent(BaseModel):
    """What every event of a stream says; keys beyond OpenAI's come last."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: str
    b64_json: str = Field(description="The file, base64.")
    created_at: int = Field(description="Unix time in seconds.")
    size: str = Field(description="Actual `WIDTHxHEIGHT`.")
    quality: Quality
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat


class PartialImageEvent(ImageEvent):
    """A preview of an image while `stream` is on."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(description="Counts the previews of one image from 0.")
    image_index: int = Field(description="Which of the `n` images, counted from 0.")


class CompletedEvent(ImageEvent):
    """A finished image while `stream` is on."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage = Field(description="Compute units of this image.")
    image_index: int = Field(description="Which of the `n` images, counted from 0.")
    seed: int = Field(description="Send it again to get this image alone.")
    url: str = Field(description="Signed link; empty only where no image store is configured.")


class QueuedEvent(BaseModel):
    """A replica has taken the job; with `stream_progress` only."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: Literal["image_generation.queued"] = "image_generation.queued"
    ahead: int = Field(description="Images of other jobs that came before.")
    estimated_s: float | None = Field(
        None, description="Seconds until all images are drawn; null when unknown."
    )


class ProgressEvent(BaseModel):
    """An image got a step further; with `stream_progress` only."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: Literal["image_generation.progress"] = "image_generation.progress"
    image_index: int = Field(description="Which of the `n` images, counted from 0.")
    step: int = Field(description="Denoising steps done.")
    steps: int = Field(description="Denoising steps in all.")
