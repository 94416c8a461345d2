"""Which addresses only this machine can reach."""

import pytest

from serve_app.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_a_loopback_address_is_one(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "192.168.1.2",
        "203.0.113.9",
        "127.0.0.1:8000",
        "127.1",
        "localhost.evil.example",
        "0177.0.0.1",
        "*",
    ],
)
def test_anything_else_is_not_even_a_name_that_might_resolve_to_one(host: str | None) -> None:
    assert not is_loopback(host)
