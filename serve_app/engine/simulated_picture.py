"""What a simulated engine hands out: a placeholder that cannot be taken for a picture.

Data flow: size, seed and prompt -> two colours and four lines of text -> PNG, JPEG or WebP of the
right size. Cheap on purpose: eight simulated GPUs share the cores of one machine. Must not import
torch.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from serve_app.engine.job import OutputFormat

FONT_SHARE = 16  # of the shorter edge: four lines of text fit with room to spare
FONT_MIN_PX = 8
HASH_CHARS = 8

_SAVE: dict[OutputFormat, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 1},
    "jpeg": {"format": "JPEG"},
    "webp": {"format": "WEBP", "method": 0},
}


@dataclass(frozen=True)
class Placeholder:
    """Stands for the pixels of an image until it is encoded."""

    width: int
    height: int
    seed: int
    prompt: str
    note: str = ""
    """A fifth line."""

    def lines(self) -> list[str]:
        """What the picture says. A hash, so that a prompt can be recognised and not read."""
        digest = hashlib.sha256(self.prompt.encode()).hexdigest()[:HASH_CHARS]
        size = f"{self.width}x{self.height}"
        lines = ["simulated", size, f"seed {self.seed}", f"prompt {digest}", self.note]
        return [line for line in lines if line]


def encode(picture: Placeholder, output_format: OutputFormat, compression: int) -> bytes:
    """The placeholder as a file; arguments as of `codec.encode`."""
    lines = picture.lines()
    image = Image.new("P", (picture.width, picture.height), 0)
    tint = hashlib.sha256("\n".join(lines).encode()).digest()
    image.putpalette([*(channel // 2 for channel in tint[:3]), 255, 255, 255])
    edge = min(picture.width, picture.height)
    size = max(FONT_MIN_PX, edge // FONT_SHARE)
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"  # two colours
    draw.multiline_text((size, size), "\n".join(lines), fill=1, font=_font(size))
    out = io.BytesIO()
    options = _SAVE[output_format]
    if output_format == "png":
        image.save(out, bits=1, **options)
    else:
        image.convert("RGB").save(out, quality=compression, **options)
    return out.getvalue()


@cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
