"""Quantities as people write them, parsed strictly: `90s`, `1.5m`, `0.1%`.

Data flow: command line -> numbers in seconds and shares, or a `ConfigError` that says why not.
"""

import re

from serve_app.errors import ConfigError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


def parse_duration(text: str, name: str) -> float:
    """Seconds of `500ms`, `2s`, `1.5m` or `1h`; a unit is required, and zero is refused."""
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ConfigError(f"{name}: {text!r} is no duration such as 500ms, 2s, 1.5m or 1h")
    return seconds


def parse_share(text: str, name: str) -> float:
    """The share of `0.1%`, 0 to 1; the percent sign is required."""
    found = _SHARE.fullmatch(text)
    if not found or float(found[1]) > 100:
        raise ConfigError(f"{name}: {text!r} is no share such as 0.1%")
    return float(found[1]) / 100
