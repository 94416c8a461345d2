"""The server under test, seen through its API: account, prices, replicas.

Data flow: key -> `Target` -> `Balance`, quoted units, `Sample`s. Failures are `ConfigError`s that
say what the server said: before a test that is a reason not to start it.
"""

from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.errors import ConfigError
from serve_app.loadtest.books import Balance

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class ModelSample:
    """One model at one moment, as `GET /admin/v1/status` tells it."""

    id: str
    running: int
    starting: int
    stopping: int
    target: int | None
    num_gpus: float
    open_holds: int
    held_units: int

    @property
    def replicas(self) -> int:
        """Replicas that occupy their GPUs, on their way up and down, too."""
        return self.running + self.starting + self.stopping


@dataclass(frozen=True)
class Sample:
    """The fleet, `at_s` seconds after the start of the test."""

    at_s: float
    models: tuple[ModelSample, ...]

    @property
    def gpus(self) -> float:
        return sum(model.replicas * model.num_gpus for model in self.models)


class Target:
    """`key` draws and pays; `admin_key` reads the status."""

    def __init__(self, url: str, key: str, admin_key: str) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_S
        )
        self._admin = {"authorization": f"Bearer {admin_key}"}

    def close(self) -> None:
        self._http.close()

    def balance(self) -> Balance:
        found = self._ask("GET", "/v1/account")
        return Balance(found["captured"], found["held"], found["available"])

    def price(self, body: dict[str, Any], what: str) -> int:
        """Compute units of a request; `ConfigError` when the server would refuse it."""
        units: int = self._ask("POST", "/v1/images/quote", body, what)["units"]
        return units

    def sees_status(self) -> bool:
        """Whether the admin key may read the status at all."""
        reply = self._send("GET", "/admin/v1/status", None, self._admin)
        if reply.status_code in (401, 403, 404):
            return False
        self._checked(reply, "GET /admin/v1/status")
        return True

    def sample(self, at_s: float) -> Sample | None:
        """Replicas and open work; None when the server does not tell right now."""
        try:
            reply = self._http.get("/admin/v1/status", headers=self._admin)
        except httpx.HTTPError:
            return None
        if reply.status_code != 200:
            return None
        return Sample(at_s, tuple(_model(one) for one in reply.json()["models"]))

    def _ask(self, method: str, path: str, body: Any = None, what: str = "") -> dict[str, Any]:
        return self._checked(self._send(method, path, body), what or f"{method} {path}")

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        try:
            return self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as exc:
            raise ConfigError(f"{self.url}: {type(exc).__name__}: {exc}") from None

    def _checked(self, reply: httpx.Response, what: str) -> dict[str, Any]:
        try:
            found = reply.json()
        except ValueError:
            found = None
        if reply.status_code != 200 or not isinstance(found, dict):
            error = found.get("error") if isinstance(found, dict) else None
            said = error.get("message") if isinstance(error, dict) else reply.text[:200]
            raise ConfigError(f"{what}: {self.url} answers {reply.status_code}: {said}")
        return found


def _model(found: dict[str, Any]) -> ModelSample:
    replicas = found["replicas"]
    return ModelSample(
        id=found["id"],
        running=replicas["running"],
        starting=replicas["starting"],
        stopping=replicas["stopping"],
        target=replicas["target"],
        num_gpus=found["num_gpus"],
        open_holds=found["open_holds"],
        held_units=found["held_units"],
    )
