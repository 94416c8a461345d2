"""What an image file says about itself: an XMP packet, put into a file that is encoded already.

Data flow: encoded PNG, JPEG or WebP + `Origin` -> the same file with one more chunk or segment. The
pixels are not touched, nothing is encoded again, and the engine need not know the request that it
draws for. Standard library only.

Formats: PNG-3 section 11.3.3.4 (iTXt) and 8.2 of XMP part 3; JPEG's APP1 as in XMP part 3, 1.1.3;
WebP's container, https://developers.google.com/speed/webp/docs/riff_container. The marker is IPTC's
digital source type, https://cv.iptc.org/newscodes/digitalsourcetype/, the rest IPTC's properties of
2025.1 for AI where it has them, and our own where it has not.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from serve_app import __version__
from serve_app.engine.job import OutputFormat

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
NAMESPACE = "urn:flux-serve:xmp:1/"
PROMPT_MAX_CHARS = 4000
"""A JPEG segment holds 65,533 bytes, and a character takes up to 6 (`&quot;`) in XML."""
_PLAIN = re.compile("[A-Za-z0-9 ._:/+-]*")
"""Nothing in it needs quoting, as in most values; escaping each took a tenth of the gateway's time
for a request."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_END = 33  # signature 8, IHDR 4 + 4 + 13 + 4
_PNG_KEYWORD = b"XML:com.adobe.xmp\0\0\0\0\0"  # not compressed, no language, no translation
_JPEG_START = b"\xff\xd8"
_JPEG_APP0, _JPEG_APP1 = b"\xff\xe0", b"\xff\xe1"
_JPEG_KEYWORD = b"http://ns.adobe.com/xap/1.0/\0"
_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10  # flags of VP8X


@dataclass(frozen=True)
class Origin:
    """Where the images of one job come from."""

    model: str
    steps: int
    request_id: str
    prompt: str | None = None


def describe(data: bytes, output_format: OutputFormat, origin: Origin, seed: int) -> bytes:
    """The file with its metadata.

    Raises:
        ValueError: it is no file of that format.
    """
    return _WRITERS[output_format](data, packet(origin, seed).encode())


def packet(origin: Origin, seed: int) -> str:
    """The XMP of one image."""
    values = {
        "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE,
        "Iptc4xmpExt:AISystemUsed": origin.model,
        "xmp:CreatorTool": f"flux-serve {__version__}",
        "flux:Model": origin.model,
        "flux:Seed": str(seed),
        "flux:Steps": str(origin.steps),
        "flux:RequestId": origin.request_id,
    }
    if origin.prompt is not None:
        values["Iptc4xmpExt:AIPromptInformation"] = origin.prompt[:PROMPT_MAX_CHARS]
    properties = "".join([f"\n  {name}={_quoted(value)}" for name, value in values.items()])
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '<rdf:Description rdf:about=""\n'
        '  xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"\n'
        '  xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n'
        f'  xmlns:flux="{NAMESPACE}"{properties}/>\n'
        '</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="r"?>'
    )


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return f'"{value}"'
    return quoteattr(_NOT_XML.sub("", value))


def _png(data: bytes, xmp: bytes) -> bytes:
    """One iTXt chunk behind the header."""
    if not data.startswith(_PNG_START) or data[12:16] != b"IHDR":
        raise ValueError("not a PNG")
    body = b"iTXt" + _PNG_KEYWORD + xmp
    chunk = (struct.pack(">I", len(body) - 4), body, struct.pack(">I", zlib.crc32(body)))
    return b"".join((data[:_PNG_HEADER_END], *chunk, data[_PNG_HEADER_END:]))


def _jpeg(data: bytes, xmp: bytes) -> bytes:
    """One APP1 segment behind JFIF's APP0, which has to be first."""
    if not data.startswith(_JPEG_START):
        raise ValueError("not a JPEG")
    at = 2
    if data[2:4] == _JPEG_APP0:
        at += 2 + int.from_bytes(data[4:6], "big")
    segment = _JPEG_KEYWORD + xmp
    header = _JPEG_APP1 + struct.pack(">H", len(segment) + 2)
    return b"".join((data[:at], header, segment, data[at:]))


def _webp(data: bytes, xmp: bytes) -> bytes:
    """An XMP chunk at the end, and at the start the VP8X header that announces it."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    chunks = data[12:]
    if chunks[:4] == b"VP8X":
        flags, chunks = chunks[8] | _WEBP_XMP, chunks[18:]
        size = data[24:30]
    else:
        width, height, alpha = _webp_size(chunks)
        flags = _WEBP_XMP | (_WEBP_ALPHA if alpha else 0)
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    header = b"VP8X" + struct.pack("<IB3x", 10, flags) + size
    tail = b"XMP " + struct.pack("<I", len(xmp)) + xmp + b"\0" * (len(xmp) % 2)
    length = len(b"WEBP") + len(header) + len(chunks) + len(tail)
    return b"".join((b"RIFF", struct.pack("<I", length), b"WEBP", header, chunks, tail))


def _webp_size(chunks: bytes) -> tuple[int, int, bool]:
    """Width, height and transparency of a lossy (VP8) or lossless (VP8L) bitstream."""
    if chunks[:4] == b"VP8 ":
        width, height = struct.unpack_from("<HH", chunks, 14)
        return width & 0x3FFF, height & 0x3FFF, False
    if chunks[:4] == b"VP8L":
        bits = int.from_bytes(chunks[9:13], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    raise ValueError("not a WebP of one image")


_WRITERS: dict[str, Callable[[bytes, bytes], bytes]] = {"png": _png, "jpeg": _jpeg, "webp": _webp}
