"""Rows as CSV that a spreadsheet may open: no cell of it is taken for a formula.

Data flow: listings -> `lines` -> a streamed reply, or the command line. Imports nothing of ours.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import date, datetime

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What spreadsheets take for the start of a formula (OWASP, CSV injection), wide forms too."""


def cell(value: object) -> str:
    """Text that begins like a formula gets an apostrophe in front, which spreadsheets do not show.

    Numbers stay numbers, negative ones too.
    """
    if value is None:
        return ""
    if isinstance(value, datetime | date):
        return value.isoformat()
    text = str(value)
    harmless = isinstance(value, int) or not text.lstrip(" ").startswith(FORMULA_STARTS)
    return text if harmless else f"'{text}"


def lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as RFC 4180 has them: CRLF, quoted where needed."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()
