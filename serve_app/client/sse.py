"""Server-sent events out of a byte stream, by the WHATWG rules that a reader of `data:` needs.

Data flow: chunks of a reply -> lines -> the `data` of each event. Not `str.splitlines`: it would
cut at characters that JSON may hold as they are (U+2028 and others).
"""

from collections.abc import Iterable, Iterator

from serve_app.client.failures import BrokenOff

EVENT_MAX_BYTES = 256 * 1024 * 1024
"""One event holds one image, base64: 16 MP of noise as PNG stay under 70 MB."""


def event_data(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each complete event; comments and other fields are left out.

    Raises:
        BrokenOff: an event is larger than `EVENT_MAX_BYTES`.
    """
    data: list[bytes] = []
    size = 0
    for line in _lines(chunks):
        if not line:
            if data:
                yield b"\n".join(data)
            data, size = [], 0
        elif line == b"data" or line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            size += len(line)
            if size > EVENT_MAX_BYTES:
                raise BrokenOff("the server sent an event that is too large")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines that end with LF, CR or CR LF; what follows the last end of line is no line."""
    held = bytearray()
    after_cr = False
    for chunk in chunks:
        if after_cr and chunk:
            chunk, after_cr = chunk.removeprefix(b"\n"), False
        searched = len(held)
        held += chunk
        if len(held) > EVENT_MAX_BYTES:
            raise BrokenOff("the server sent an event that is too large")
        if b"\n" not in chunk and b"\r" not in chunk:
            continue
        after_cr = held.endswith(b"\r")
        # Only what is new can hold an end of line: large lines come in thousands of chunks.
        first = min(i for i in (held.find(b"\n", searched), held.find(b"\r", searched)) if i >= 0)
        head, rest = bytes(held[:first]), bytes(held[first:])
        lines = (head + rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        held = bytearray(lines.pop())
        yield from lines
