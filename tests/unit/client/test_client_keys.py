"""Addresses and keys: what is accepted, in which order, and what is refused in a sentence."""

from pathlib import Path

import pytest

from serve_app.client.failures import LocalFailure, NoKey
from serve_app.client.keys import configured_key, find_key
from serve_app.client.server import Key, base_url

BOTH = {"FLUX_SERVE_API_KEY": "sk-ours", "OPENAI_API_KEY": "sk-theirs"}


def secret(found: Key | None) -> str | None:
    return found.secret if found else None


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://host/v1/", "https://host"),
        (" http://[::1]:80/strict ", "http://[::1]:80/strict"),
    ],
)
def test_addresses_of_other_clients_work(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "host:8000", "ftp://host", "http://", "http://u:p@host", "http://h?x=1", "http://h:99999",
     "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(LocalFailure, match="--url"):
        base_url(text)


def test_the_file_wins_then_our_variable_then_openais(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    assert secret(configured_key(file, BOTH)) == "sk-file"
    assert secret(configured_key(None, BOTH)) == "sk-ours"
    assert secret(configured_key(None, {**BOTH, "FLUX_SERVE_API_KEY": " "})) == "sk-theirs"
    assert configured_key(None, {}) is None


@pytest.mark.parametrize(
    "content", [b"", b"two words", b"sk-\xc3\xa9", b"\xff\xfe", b"a\nb", b"x" * 5000]
)
def test_a_file_without_a_key_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(LocalFailure, match="key"):
        configured_key(tmp_path / "key", {})


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(LocalFailure, match="No such file"):
        configured_key(tmp_path / "key", BOTH)


def test_no_key_for_another_machine_asks_nobody() -> None:
    with pytest.raises(NoKey, match="FLUX_SERVE_API_KEY"):
        find_key("http://flux.invalid", None, {})


def test_a_key_is_not_shown() -> None:
    assert "sk-ours" not in repr(configured_key(None, BOTH))
