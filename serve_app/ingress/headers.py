"""Headers that several replies share: price, balance, rate limit, replay. Pure.

Data flow: a finished job, an opened stream or a refusal -> header names and values, as OpenAI's
clients know them.
"""

import math

from serve_app.metering.limits import Rate

REPLAYED = "idempotent-replayed"
"""As other payment APIs call it."""


def job_headers(
    model: str, units: int, available_units: int, rate: Rate | None, *, replayed: bool
) -> dict[str, str]:
    """What every generation says beside its body; units are compute units."""
    return {
        "x-model": model,
        "x-compute-units": str(units),
        "x-compute-units-available": str(available_units),
        **rate_headers(rate),
        **replay_headers(replayed=replayed),
    }


def replay_headers(*, replayed: bool) -> dict[str, str]:
    """What says that this was done before, under the same idempotency key."""
    return {REPLAYED: "true"} if replayed else {}


def rate_headers(rate: object) -> dict[str, str]:
    """Where a key with a request limit stands; nothing for one without."""
    if not isinstance(rate, Rate):
        return {}
    return {
        "x-ratelimit-limit-requests": str(rate.limit),
        "x-ratelimit-remaining-requests": str(rate.remaining),
        "x-ratelimit-reset-requests": _duration(math.ceil(rate.reset_s)),
    }


def _duration(seconds: int) -> str:
    """Whole seconds as OpenAI writes them: `1s`, `6m0s`."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
