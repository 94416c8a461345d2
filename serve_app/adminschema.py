"""Wire models of the admin routes: what an operator's tools get. Pydantic only.

Data flow: `ingress.admin` and the modules beside it fill these -> JSON; `ingress.openapi` and the
docs are made from them.
"""

from datetime import date, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from serve_app.metering.records import Account

NEXT = "Send it as `after` to get the next page; null on the last one."


class ReplicaStatus(BaseModel):
    """Replicas of one model by Serve's word, at most a second old."""

    running: int = Field(description="Replicas that take jobs.")
    starting: int = Field(description="Replicas on their way up: placed, loading, recovering.")
    stopping: int = Field(description="Replicas on their way down, finishing their jobs.")
    target: int | None = Field(
        description="How many Serve wants now; null while the model is not deployed."
    )


class ModelStatus(BaseModel):
    """One model: who could work, and what work there is in the whole fleet."""

    id: str
    replicas: ReplicaStatus
    num_gpus: float = Field(description="GPUs pinned to each replica.")
    open_holds: int = Field(description="Jobs queued or running, in every gateway.")
    held_images: int = Field(description="Images that those jobs asked for.")
    held_units: int = Field(description="Compute units that those jobs hold.")


class StatusResponse(BaseModel):
    """Reply of `GET /admin/v1/status`."""

    models: list[ModelStatus] = Field(description="Every served model, in the config's order.")


class AccountObject(BaseModel):
    """An account and its balance, in compute units."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    granted: int
    captured: int
    held: int
    available: int
    day_budget: int | None
    month_budget: int | None
    created_at: datetime
    disabled_at: datetime | None

    @classmethod
    def of(cls, account: Account) -> Self:
        balance = account.balance
        return cls(
            id=balance.id,
            name=balance.name,
            granted=balance.granted,
            captured=balance.captured,
            held=balance.held,
            available=balance.available,
            day_budget=account.day_budget,
            month_budget=account.month_budget,
            created_at=account.created_at,
            disabled_at=account.disabled_at,
        )


class KeyObject(BaseModel):
    """An API key, without its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    account_id: str
    prefix: str = Field(description="Its first characters.")
    scopes: list[str]
    rpm: int | None
    images_max: int | None
    models: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute; set by generations.")


class NewKeyObject(KeyObject):
    secret: str = Field(description="The key itself; this is the only time that it is told.")


class EntryObject(BaseModel):
    """One line of the books."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    account_id: str
    kind: Literal["grant", "capture", "refund"]
    units: int = Field(description="Negative for a capture.")
    hold_id: str | None
    created_at: datetime
    memo: str
    idempotency_key: str | None = Field(description="Of a grant that was made under one.")


class ActObject(BaseModel):
    """One thing that an operator did."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    actor: str = Field(description="`api:ACCOUNT/KEY`, `cli:USER` or `system`.")
    verb: str = Field(description="As on the command line, such as `keys revoke`.")
    subject: str = Field(description="Id of the account or key.")
    reason: str
    detail: dict[str, Any] = Field(description="What was set; never a secret.")


class UsageObject(BaseModel):
    """What was captured, summed up; null where the sum goes over all."""

    model_config = ConfigDict(from_attributes=True)

    day: date | None
    account_id: str | None
    key_id: str | None
    model: str | None
    jobs: int
    images: int
    units: int


class AccountPage(BaseModel):
    data: list[AccountObject] = Field(description="Oldest first.")
    next: str | None = Field(description=NEXT)


class KeyPage(BaseModel):
    data: list[KeyObject] = Field(description="Oldest first.")
    next: str | None = Field(description=NEXT)


class EntryPage(BaseModel):
    data: list[EntryObject] = Field(description="Newest first.")
    next: str | None = Field(description=NEXT)


class ActPage(BaseModel):
    data: list[ActObject] = Field(description="Newest first.")
    next: str | None = Field(description=NEXT)


class UsagePage(BaseModel):
    data: list[UsageObject] = Field(description="In the order of `day`, account, key, model.")
    next: str | None = Field(description=NEXT)


class AllowanceObject(BaseModel):
    """A budget of the account."""

    model_config = ConfigDict(from_attributes=True)

    budget: int | None = Field(description="Compute units; null is no limit.")
    used: int = Field(description="Captured since it began, and all that is held now.")
    left: int | None
    resets_at: datetime


class StandingObject(BaseModel):
    """What the account and the key that asks may still do."""

    model_config = ConfigDict(from_attributes=True)

    day: AllowanceObject
    month: AllowanceObject
    rpm: int | None
    requests_left: int | None = Field(description="That would be admitted now.")
    images_max: int | None
    images_open: int = Field(description="Images in the making with this key.")


class OwnUsagePage(UsagePage):
    left: StandingObject


class FindingObject(BaseModel):
    """A broken invariant, or a hold that nobody has swept."""

    model_config = ConfigDict(from_attributes=True)

    invariant: str
    account_id: str
    subject: str
    detail: str


class AuditResponse(BaseModel):
    """Reply of `GET /admin/v1/audit`."""

    model_config = ConfigDict(from_attributes=True)

    balanced: bool
    accounts: int
    holds: int
    entries: int
    findings: list[FindingObject] = Field(description="Broken books; at most 1000 an invariant.")
    overdue: list[FindingObject] = Field(description="Open holds that a sweep should have ended.")
