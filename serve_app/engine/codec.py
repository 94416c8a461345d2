"""Pixels to files: PNG, JPEG and WebP.

Data flow: [height, width, 3] uint8 RGB -> bytes. Runs on the threads of the image pool, holds no
state and leaves the GIL free for nearly all of its time. Must not import torch.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve_app.engine import png
from serve_app.engine.job import OutputFormat

WEBP_METHOD = 2  # 0 fastest to 6 smallest; Pillow's 4 takes up to twice as long for 3% at most

_PILLOW: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG"},
    "webp": {"format": "WEBP", "method": WEBP_METHOD},
}


def encode(
    pixels: npt.NDArray[np.uint8], output_format: OutputFormat, compression: int = 100
) -> bytes:
    """Encode one image.

    Args:
        pixels: [height, width, 3], RGB.
        output_format: `png` is lossless.
        compression: 0 to 100, quality of JPEG and WebP; PNG ignores it.

    Raises:
        KeyError: another format.
    """
    if output_format == "png":
        return png.encode(pixels)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, quality=compression, **_PILLOW[output_format])
    return out.getvalue()
