"""Mixes: what the requests of a load test ask for, from a strict YAML file.

Data flow: YAML -> `Mix` -> `plan` draws an entry for each arrival by weight.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from serve_app.errors import ConfigError
from serve_app.schema import OutputFormat, Quality, ResponseFormat

PROMPT_MAX_CHARS = 1000
"""flux-mini's default limit; a load test needs no novels."""
ENTRIES_MAX = 1000
"""Each is quoted once before the test."""


class Entry(BaseModel):
    """One kind of request. What is left out is left out of the request: the server's default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Share of the requests.")
    prompts: list[
        Annotated[str, StringConstraints(min_length=1, max_length=PROMPT_MAX_CHARS - 20)]
    ] = Field(
        ["a red circle on a blue background"], min_length=1, description="One is drawn at random."
    )
    model: str | None = Field(None, description="Model id or alias.")
    size: str | None = Field(None, pattern=r"^\d{2,5}x\d{2,5}$", description="`WIDTHxHEIGHT`.")
    steps: int | None = Field(None, ge=1, le=200, description="Denoising steps.")
    quality: Quality | None = Field(None, description="Chooses the steps.")
    n: int = Field(1, ge=1, le=10, description="Images in one request.")
    output_format: OutputFormat | None = Field(None, description="File format.")
    response_format: ResponseFormat | None = Field(None, description="`url` or `b64_json`.")

    def fields(self) -> dict[str, Any]:
        """The fields of a request body that this entry fixes."""
        found = {
            "model": self.model,
            "size": self.size,
            "num_inference_steps": self.steps,
            "quality": self.quality,
            "n": self.n,
            "output_format": self.output_format,
            "response_format": self.response_format,
        }
        return {name: value for name, value in found.items() if value is not None}


class Mix(BaseModel):
    """The kinds of requests, and whether prompts repeat."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests: list[Entry] = Field([Entry()], min_length=1, max_length=ENTRIES_MAX)
    vary_prompts: bool = Field(
        True, description="Number every prompt, so that no cache of prompt embeddings helps."
    )

    @classmethod
    def read(cls, path: Path) -> Self:
        """A mix file, or a `ConfigError` that names the file and every bad field."""
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: no YAML: {exc}") from None
        try:
            return cls.model_validate(data)
        except ValidationError as exc:
            raise ConfigError(f"{path}: {_explain(exc)}") from None


def _explain(exc: ValidationError) -> str:
    problems = exc.errors(include_url=False, include_input=False)
    found = [(".".join(map(str, one["loc"])) or "file", one["msg"]) for one in problems]
    return "; ".join(f"{where}: {what}" for where, what in found)
