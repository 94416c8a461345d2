"""CSV that spreadsheets open without running anything."""

import csv
from datetime import UTC, date, datetime

import pytest

from serve_app.csvfile import cell, lines


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "=HYPERLINK(\"http://x\")"],
)  # fmt: skip
def test_text_that_begins_like_a_formula_is_text(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["alice", "", "a=1", "'quoted'", "1-2"])
def test_other_text_stays_as_it_is(text):
    assert cell(text) == text


def test_values_stay_values():
    assert [cell(one) for one in (-5, 0, None, date(2026, 1, 2))] == ["-5", "0", "", "2026-01-02"]
    assert cell(datetime(2026, 1, 2, 3, tzinfo=UTC)) == "2026-01-02T03:00:00+00:00"


def test_what_was_written_is_what_is_read():
    rows = [["a", 'say "x", y'], ["line\nbreak", "é"]]
    text = lines(rows)
    assert text.endswith("\r\n")
    assert list(csv.reader(text.splitlines(keepends=True))) == rows
