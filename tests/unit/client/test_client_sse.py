"""Events out of bytes, however the network cuts them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.client import sse
from serve_app.client.events import Completed, Queued, parse_event
from serve_app.client.failures import BrokenOff, ServerSaid
from serve_app.client.sse import event_data

STREAM = (
    ': keep-alive\n\nevent: a\ndata: {"x":"one\u2028\x85two"}\n\n'
    "data: two\r\ndata:lines\r\n\r\nid: 4\n\ndata\n\ndata: three\r\rdata: never ended\n"
).encode()
DATA = ['{"x":"one\u2028\x85two"}'.encode(), b"two\nlines", b"", b"three"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_it_does_not_matter_where_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *cuts, len(STREAM)]
    chunks = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert list(event_data(chunks)) == DATA


def test_byte_by_byte_is_the_same() -> None:
    assert list(event_data(bytes([byte]) for byte in STREAM)) == DATA


@pytest.mark.parametrize("chunk", [b"data: 123456", b"data: 1234\n"])
def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, chunk: bytes) -> None:
    monkeypatch.setattr(sse, "EVENT_MAX_BYTES", 1000)
    with pytest.raises(BrokenOff, match="too large"):
        list(event_data(chunk for _ in range(1000)))


def test_unknown_events_and_fields_are_left_out() -> None:
    assert parse_event(b'{"type":"image_generation.weather","wind":3}', None) is None
    queued = parse_event(b'{"type":"image_generation.queued","ahead":2,"new":1}', None)
    assert queued == Queued(ahead=2)


def test_an_image_carries_its_bytes_and_its_price() -> None:
    event = parse_event(
        b'{"type":"image_generation.completed","b64_json":"aGk=","size":"1x1","image_index":3,'
        b'"seed":7,"usage":{"compute_units":5}}',
        None,
    )
    assert isinstance(event, Completed)
    assert (event.b64_json, event.image_index, event.units) == (b"hi", 3, 5)


def test_an_error_is_the_servers_word() -> None:
    with pytest.raises(ServerSaid) as caught:
        parse_event(b'{"error":{"message":"no\\u001b[2J","type":"server_error"}}', "req_1")
    assert caught.value.message == "no [2J [request req_1]"  # a terminal is not commanded
    assert caught.value.exit_status == 7


@pytest.mark.parametrize(
    "data", [b"[]", b"{", b'{"type":"image_generation.completed","b64_json":"aGk="}', b"\xff"]
)
def test_what_is_no_event_ends_the_stream(data: bytes) -> None:
    with pytest.raises(BrokenOff, match="cannot be read"):
        parse_event(data, None)
