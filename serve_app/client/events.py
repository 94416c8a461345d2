"""What a stream tells, as the command line needs it: fields it does not use are not looked at.

Data flow: `data` of an event -> `parse_event` -> one of these. Kinds that this version does not
know are left out, so an older command line works with a newer server.
"""

from typing import Any

from pydantic import Base64Bytes, BaseModel, ConfigDict, ValidationError, model_validator

from serve_app.client.failures import BrokenOff, ServerSaid


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class Queued(_Event):
    """A replica has the job; `ahead` images of others come first."""

    ahead: int
    estimated_s: float | None = None


class Progress(_Event):
    image_index: int
    step: int
    steps: int


class Partial(_Event):
    """A preview: a whole file, see-through to what the image will be."""

    b64_json: Base64Bytes
    image_index: int = 0


class Completed(_Event):
    """One image, whole and paid for."""

    b64_json: Base64Bytes
    image_index: int = 0
    size: str
    seed: int | None = None
    url: str = ""
    units: int = 0

    @model_validator(mode="before")
    @classmethod
    def _take_units(cls, data: Any) -> Any:
        usage = data.get("usage") if isinstance(data, dict) else None
        units = usage.get("compute_units", 0) if isinstance(usage, dict) else 0
        return {**data, "units": units} if isinstance(data, dict) else data


Told = Queued | Progress | Partial | Completed
KINDS: dict[str, type[Queued] | type[Progress] | type[Partial] | type[Completed]] = {
    "image_generation.queued": Queued,
    "image_generation.progress": Progress,
    "image_generation.partial_image": Partial,
    "image_generation.completed": Completed,
}


class _Envelope(BaseModel):
    type: str = ""
    error: dict[str, Any] | None = None


def parse_event(data: bytes, request_id: str | None) -> Told | None:
    """The event; None for a kind that is not known here.

    Raises:
        ServerSaid: the event is the error that ends the stream.
        BrokenOff: it is no event of this API.
    """
    try:
        envelope = _Envelope.model_validate_json(data)
        if envelope.error is not None:
            raise ServerSaid(None, envelope.error, request_id)
        kind = KINDS.get(envelope.type)
        return kind.model_validate_json(data) if kind else None
    except ValidationError:
        raise BrokenOff("the server sent an event that cannot be read") from None
