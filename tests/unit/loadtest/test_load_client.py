"""What a reply means to a load test."""

import json
from typing import Any

import pytest

from serve_app.loadtest.client import Reply, judge


def body(images: int) -> bytes:
    return json.dumps({"data": [{"url": "u"}] * images}).encode()


def error(code: Any) -> bytes:
    return json.dumps({"error": {"message": "", "type": "", "param": None, "code": code}}).encode()


PAID = {"x-compute-units": "12"}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ((200, PAID, body(2)), Reply(200, "200", 12, 2)),
        ((200, PAID, body(1)), Reply(200, "bad_reply")),  # fewer than were asked for
        ((200, {}, body(2)), Reply(200, "bad_reply")),  # it tells no price
        ((200, PAID, b"<html>"), Reply(200, "bad_reply")),
        ((200, PAID, b"[]"), Reply(200, "bad_reply")),
        ((402, {}, error("credit_balance_exhausted")), Reply(402, "credit_balance_exhausted")),
        (
            (503, {"retry-after": "7"}, error("server_is_overloaded")),
            Reply(503, "server_is_overloaded", retry_after_s=7.0),
        ),
        ((503, {"retry-after": "soon"}, b""), Reply(503, "http_503")),
        ((502, {}, b"<html>"), Reply(502, "http_502")),
        ((401, {}, error(None)), Reply(401, "http_401")),
        ((400, {}, b'{"error": "text"}'), Reply(400, "http_400")),
    ],
)
def test_a_reply_is_judged_by_all_of_it(reply: tuple[Any, ...], expected: Reply) -> None:
    assert judge(*reply, wanted=2) == expected
