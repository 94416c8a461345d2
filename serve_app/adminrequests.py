"""Wire models of what operators send: bodies and parameters of the admin routes. Pydantic only.

Data flow: JSON or a URL -> these -> `ingress`; `ingress.openapi` is made from them.
"""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve_app.metering.limits import RPM_MAX
from serve_app.metering.types import (
    LIST_MAX,
    MODELS_MAX,
    NAME_CHARS_MAX,
    REASON_CHARS_MAX,
    UNITS_MAX,
)

CURSOR_CHARS_MAX = 1000
"""A cursor of usage holds four names of up to 200 characters."""
FORMAT = "`csv`: all rows as a file; as does `accept: text/csv`."


def _read_time(value: object) -> datetime:
    """Text only: a number would be taken for seconds since 1970."""
    if not isinstance(value, str):
        raise PydanticCustomError("time_type", "a time is text such as 2027-01-31T12:00:00Z")
    return datetime.fromisoformat(value)


def _read_day(value: object) -> date:
    return date.fromisoformat(str(value))


Day = Annotated[date, BeforeValidator(_read_day)]


class AdminRequest(BaseModel):
    """Strict types, and no unknown fields: a slip must not lift a limit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AdminQuery(BaseModel):
    """Parameters of a URL: text, so numbers are read from it; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reason(AdminRequest):
    """Body of what needs nothing but a word on why."""

    reason: str | None = Field(
        None, max_length=REASON_CHARS_MAX, description="Why, for the log of acts."
    )


class NewAccount(Reason):
    """Body of `POST /admin/v1/accounts`."""

    name: str = Field(min_length=1, max_length=NAME_CHARS_MAX, description="Unique, for people.")


class Budgets(Reason):
    """Body of `PUT /admin/v1/accounts/{account}/budgets`: both; absent or null is no limit."""

    day_budget: int | None = Field(
        None, ge=1, le=UNITS_MAX, description="Most units captured and held in a day of UTC."
    )
    month_budget: int | None = Field(
        None, ge=1, le=UNITS_MAX, description="The same for a calendar month of UTC."
    )


class Grant(AdminRequest):
    """Body of `POST /admin/v1/grants`. It makes money: the reason is not optional."""

    account: str = Field(max_length=NAME_CHARS_MAX, description="Id or name.")
    units: int = Field(ge=1, le=UNITS_MAX, description="Compute units to add.")
    reason: str = Field(
        min_length=1, max_length=REASON_CHARS_MAX, description="Why; also the entry's memo."
    )


class KeyLimits(Reason):
    """Body of `PUT /admin/v1/keys/{key_id}/limits`: all limits; absent or null lifts one."""

    rpm: int | None = Field(None, ge=1, le=RPM_MAX, description="Requests a minute.")
    images_max: int | None = Field(
        None, ge=1, le=2**31 - 1, description="Images in the making at once."
    )
    models: list[str] | None = Field(
        None, min_length=1, max_length=MODELS_MAX, description="Ids of models that it may use."
    )


class NewKeyRequest(KeyLimits):
    """Body of `POST /admin/v1/keys`."""

    account: str = Field(max_length=NAME_CHARS_MAX, description="Id or name.")
    scopes: list[Literal["images", "admin"]] | None = Field(
        None, min_length=1, max_length=2, description="What it opens; `images` when absent."
    )
    expires_at: Annotated[AwareDatetime, BeforeValidator(_read_time)] | None = Field(
        None, strict=False, description="ISO 8601 with a zone; never when absent."
    )


class PageQuery(AdminQuery):
    """Which page of a listing."""

    limit: int = Field(100, ge=1, le=LIST_MAX, description="Rows of the page.")
    after: str | None = Field(
        None, max_length=CURSOR_CHARS_MAX, description="`next` of the page before."
    )


class AccountPageQuery(PageQuery):
    account: str | None = Field(
        None, max_length=NAME_CHARS_MAX, description="Only this account's; its id or name."
    )


class EntriesQuery(AccountPageQuery):
    format: Literal["json", "csv"] | None = Field(None, description=FORMAT)


class ActsQuery(PageQuery):
    subject: str | None = Field(
        None, max_length=NAME_CHARS_MAX, description="Only on this account or key; its id."
    )


class OwnUsageQuery(PageQuery):
    """Days are of UTC, both inclusive."""

    since: Day | None = Field(
        None, alias="from", description="First day; 29 days before `to` when absent."
    )
    until: Day | None = Field(None, alias="to", description="Last day; today when absent.")
    by: str = Field(
        "day,model",
        max_length=50,
        description="What to sum up by: one or more of `day`, `account`, `key`, `model`.",
    )
    key: str | None = Field(None, max_length=NAME_CHARS_MAX, description="Only of this key's id.")
    model: str | None = Field(None, max_length=NAME_CHARS_MAX, description="Only of this model.")


class UsageQueryParameters(OwnUsageQuery):
    by: str = Field(
        "day,account,key,model",
        max_length=50,
        description="What to sum up by: one or more of `day`, `account`, `key`, `model`.",
    )
    account: str | None = Field(
        None, max_length=NAME_CHARS_MAX, description="Only this account's; its id or name."
    )
    format: Literal["json", "csv"] | None = Field(None, description=FORMAT)
