"""What an operator may write: names, scopes, limits. `InvalidValue` names the field at fault."""

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from serve_app.errors import InvalidValue
from serve_app.metering import keys
from serve_app.metering.types import (
    IDEMPOTENCY_KEY_CHARS_MAX,
    MODELS_MAX,
    NAME_CHARS_MAX,
    REASON_CHARS_MAX,
    TEXT_CHARS_MAX,
)

ACCOUNT_PREFIX = "acct_"
INTEGER_MAX = 2**31 - 1
"""Of the columns that keep a key's limits."""
IDEMPOTENCY_KEY = re.compile(rf"[!-~]{{1,{IDEMPOTENCY_KEY_CHARS_MAX}}}")
"""Visible ASCII: everything else is changed or refused by some proxy."""


def require_positive(name: str, value: int | None, most: int = INTEGER_MAX) -> None:
    if value is not None and (type(value) is not int or not 0 < value <= most):
        raise InvalidValue(f"This is a whole number from 1 to {most}, or absent.").at(name)


def require_name(name: str) -> None:
    printable = all(unicodedata.category(character)[0] != "C" for character in name)
    if not 0 < len(name.strip()) == len(name) <= NAME_CHARS_MAX or not printable:
        raise InvalidValue(f"An account's name is 1 to {NAME_CHARS_MAX} printable characters.").at(
            "name"
        )
    if name.startswith(ACCOUNT_PREFIX):  # else a name could be mistaken for another account's id
        raise InvalidValue(f"An account's name may not start with {ACCOUNT_PREFIX}.").at("name")


def require_scopes(scopes: Sequence[str]) -> None:
    unknown = sorted(set(scopes) - set(keys.KNOWN_SCOPES))
    if unknown or not scopes or len(set(scopes)) < len(scopes):
        raise InvalidValue(f"Scopes are one or more of {', '.join(keys.KNOWN_SCOPES)}.").at(
            "scopes"
        )


def is_storable(text: str) -> bool:
    """Whether every database takes this: PostgreSQL has no NUL, and no UTF-8 a lone surrogate."""
    return "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def require_reason(reason: str) -> None:
    if len(reason) > REASON_CHARS_MAX or not is_storable(reason):
        raise InvalidValue(f"A reason is text of at most {REASON_CHARS_MAX} characters.").at(
            "reason"
        )


def require_idempotency_key(key: str | None) -> None:
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidValue(
            f"An idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters."
        ).at("idempotency_key")


def require_models(models: Sequence[str] | None) -> None:
    """Ids without white space: the column keeps them separated by spaces."""
    if models is None:
        return
    good = all(0 < len(one) <= TEXT_CHARS_MAX and one.split() == [one] for one in models)
    unique = len(set(models)) == len(models)
    if not (0 < len(models) <= MODELS_MAX and good and unique and is_storable("".join(models))):
        raise InvalidValue(
            f"Models are 1 to {MODELS_MAX} different ids without white space, or absent."
        ).at("models")


def require_expiry(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is None:
        return
    try:
        good = expires_at.tzinfo is not None and expires_at.astimezone(UTC) > now
    except OverflowError:  # the last hours of the year 9999, or the first of the year 1
        good = False
    if not good:
        raise InvalidValue("A key expires in the future, at a time with a zone.").at("expires_at")
