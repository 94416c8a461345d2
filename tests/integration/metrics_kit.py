"""Reads what Ray's metrics agent exports, as Prometheus would."""

import time
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.machine import MACHINE

RAYS_LABELS = frozenset(
    {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    | {"otel_scope_name", "otel_scope_schema_url", "otel_scope_version"}
)
REPORT_S = 1.0
"""Ray's `metrics_report_interval_ms` in these clusters."""
QUIET_S = 4 * REPORT_S
PATIENCE_S = 60
POLL_S = 0.3
SERVES_LABELS = frozenset({"application", "deployment", "replica"})


@dataclass(frozen=True)
class Series:
    name: str
    labels: dict[str, str]
    value: float

    @property
    def own_labels(self) -> dict[str, str]:
        """Those that flux-serve chose, and `le` of a bucket."""
        others = RAYS_LABELS | SERVES_LABELS
        return {name: value for name, value in self.labels.items() if name not in others}


@dataclass(frozen=True)
class Scrape:
    """One look at everything."""

    series: tuple[Series, ...]
    kinds: dict[str, str]
    """By the family's name: counter, gauge or histogram."""

    @classmethod
    def of(cls, url: str) -> "Scrape":
        text = httpx.get(url, timeout=MACHINE.allow(30)).raise_for_status().text
        families = list(text_string_to_metric_families(text))
        series = [
            Series(sample.name, sample.labels, sample.value)
            for family in families
            for sample in family.samples
        ]
        return cls(tuple(series), {family.name: family.type for family in families})

    @property
    def names(self) -> set[str]:
        return {one.name for one in self.series}

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels."""
        return sum(one.value for one in self.named(name) if labels.items() <= one.labels.items())

    @property
    def counted(self) -> dict[tuple[str, ...], float]:
        """What clients have caused so far; the gateways' own looks at the ledger go on."""
        return {
            (one.name, *sorted(one.labels.values())): one.value
            for one in self.series
            if one.name.startswith("ray_flux_serve_") and one.name.endswith("_total")
        }

    def named(self, name: str) -> list[Series]:
        return [one for one in self.series if one.name == name]


def once_quiet(url: str) -> Scrape:
    """What is exported once nothing has been counted for some reports of Ray's."""
    found = Scrape.of(url)
    deadline = time.monotonic() + MACHINE.allow(PATIENCE_S)
    since = time.monotonic()
    while time.monotonic() - since < QUIET_S:
        if time.monotonic() > deadline:
            raise MACHINE.too_late("nobody counts any more", PATIENCE_S, MACHINE.allow(PATIENCE_S))
        time.sleep(POLL_S)  # polling with a deadline
        last, found = found, Scrape.of(url)
        if last.counted != found.counted:
            since = time.monotonic()
    return found
