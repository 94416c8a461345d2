"""Plan: every request of a load test, decided before the first one is sent.

Data flow: options -> `Plan` (JSON, so that it reaches every sending process) -> `schedule`. The
same plan gives the same requests at the same times everywhere: each process sends its share.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import ConfigError
from serve_app.loadtest.mix import Entry, Mix
from serve_app.loadtest.profiles import ARRIVALS_MAX, PROFILES, Segment, arrival_times, segments
from serve_app.schema import SEED_MAX

TRACE_COLUMNS = {"prompt", "model", "size", "steps", "quality", "n"}
"""Columns of a trace beside `time_s`."""


class Plan(BaseModel):
    """What is sent where and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str = Field(description="Starts the `x-request-id` of every request.")
    target: str = Field(description="Base URL of the server, without a trailing slash.")
    profile: str
    duration_s: float
    peak_rps: float
    seed: int
    timeout_s: float = Field(description="A request without a whole reply by then is given up.")
    mix: Mix
    trace: list[tuple[float, int]] | None = Field(
        None, description="(seconds, index of the entry) of each arrival; None: by the profile."
    )

    @property
    def rate(self) -> tuple[Segment, ...]:
        """The planned rate; none for a trace."""
        if self.trace is not None:
            return ()
        return segments(self.profile, self.duration_s, self.peak_rps)

    def schedule(self) -> list[tuple[float, int]]:
        """(seconds after the start, index of the mix's entry) of each arrival, in order."""
        if self.trace is not None:
            return list(self.trace)
        times = arrival_times(self.rate, self.seed)
        weights = [entry.weight for entry in self.mix.requests]
        rng = random.Random(f"entries {self.seed}")
        entries = rng.choices(range(len(weights)), weights, k=len(times))
        return list(zip(times, entries, strict=True))

    def request(self, index: int, entry: int) -> dict[str, Any]:
        """Body of one arrival."""
        rng = random.Random(f"request {self.seed} {index}")
        chosen = self.mix.requests[entry]
        prompt = rng.choice(chosen.prompts)
        if self.mix.vary_prompts:
            prompt = f"{prompt}, number {index}"
        return {"prompt": prompt, "seed": rng.randint(0, SEED_MAX), **chosen.fields()}

    def request_id(self, index: int) -> str:
        """The `x-request-id` of one arrival: logs and the ledger's holds have it, too."""
        return f"{self.run_id}-{index}"


def require_bounded(profile: str, duration_s: float, peak_rps: float) -> None:
    """Refuse an unknown profile, and more arrivals than one machine can keep."""
    if profile not in PROFILES:
        known = ", ".join(PROFILES)
        raise ConfigError(f"--profile: {profile!r} is none of {known}, and no .csv file")
    expected = sum(part.arrivals for part in segments(profile, duration_s, peak_rps))
    if expected > ARRIVALS_MAX:
        raise ConfigError(
            f"--peak-rps and --duration make about {expected:,.0f} requests; at most "
            f"{ARRIVALS_MAX:,} are possible"
        )


@dataclass(frozen=True)
class Trace:
    """A recorded load: when, and which entry."""

    arrivals: list[tuple[float, int]]
    mix: Mix


def read_trace(path: Path, duration_s: float | None) -> Trace:
    """A trace of rows `time_s[,prompt,model,size,steps,quality,n]`; empty cells are defaults.

    Times are seconds from the start and ascend. Rows after `duration_s` are left out.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: no CSV: {exc}") from None
    if not rows or "time_s" not in rows[0] or set(rows[0]) - {"time_s", *TRACE_COLUMNS}:
        known = ", ".join(sorted(TRACE_COLUMNS))
        raise ConfigError(f"{path}: needs a header with time_s and any of {known}, and rows")
    entries: dict[str, int] = {}
    kinds: list[Entry] = []
    arrivals: list[tuple[float, int]] = []
    for line, row in enumerate(rows, start=2):
        at_s = _time_of(row, arrivals, f"{path}:{line}")
        if duration_s is not None and at_s > duration_s:
            break
        entry = _entry_of(row, f"{path}:{line}")
        key = entry.model_dump_json()
        if key not in entries:
            entries[key] = len(kinds)
            kinds.append(entry)
        arrivals.append((at_s, entries[key]))
    if not arrivals or len(arrivals) > ARRIVALS_MAX:
        raise ConfigError(f"{path}: has {len(arrivals):,} rows; 1 to {ARRIVALS_MAX:,} are possible")
    try:
        return Trace(arrivals, Mix(requests=kinds, vary_prompts=False))
    except ValidationError:
        raise ConfigError(f"{path}: {len(kinds):,} different requests are too many") from None


def _time_of(row: dict[str, Any], before: Sequence[tuple[float, int]], where: str) -> float:
    try:
        at_s = float(row["time_s"])
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: time_s: {row['time_s']!r} is no number") from None
    if not 0 <= at_s < float("inf") or (before and at_s < before[-1][0]):
        raise ConfigError(f"{where}: time_s: {at_s} is negative, infinite or before the row above")
    return at_s


def _entry_of(row: dict[str, Any], where: str) -> Entry:
    cells: dict[str, Any] = {name: row[name] for name in TRACE_COLUMNS & row.keys() if row[name]}
    for name in cells.keys() & {"steps", "n"}:
        if not cells[name].isascii() or not cells[name].isdigit():
            raise ConfigError(f"{where}: {name}: {cells[name]!r} is no whole number")
        cells[name] = int(cells[name])
    if "prompt" in cells:
        cells["prompts"] = [cells.pop("prompt")]
    try:
        return Entry.model_validate(cells)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]).replace("prompts", "prompt") if first["loc"] else "row"
        raise ConfigError(f"{where}: {name}: {first['msg']}") from None
