"""What an operator may write: names, scopes, limits. `InvalidValue` names the field at fault."""

import unicodedata
from collections.abc import Sequence

from serve_app.errors import InvalidValue
from serve_app.metering import keys
from serve_app.metering.tables import NAME_CHARS_MAX

ACCOUNT_PREFIX = "acct_"
INTEGER_MAX = 2**31 - 1
"""Of the columns that keep a key's limits."""


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
