"""What a client gets of a finished job: plain frozen values. No HTTP, no Ray.

Data flow: `service` draws, or `replay` reads what was drawn before -> these -> the ingress.
"""

from dataclasses import dataclass, field

from serve_app.metering.limits import Rate
from serve_app.plan import Plan


@dataclass(frozen=True)
class Image:
    """One delivered image: `url` is empty without a store, or with one that is unavailable."""

    url: str
    b64_json: str | None = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Delivery:
    """A finished job as its client gets it."""

    plan: Plan
    images: tuple[Image, ...]
    units: int
    available_units: int
    created_s: int
    rate: Rate | None = None
    """Where the API key stands; None where it has no request limit."""
    replayed: bool = False
    """Whether this was charged and delivered before, under an idempotency key."""
    unconfirmed: str | None = None
    """The hold whose charge is given back should this process die before `ImageService.sent`."""
