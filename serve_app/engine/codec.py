"""Pixels to files: PNG, JPEG and WebP.

Data flow: [height, width, 3] uint8 RGB -> bytes. Runs on the threads of the image pool; holds no
state. Must not import torch.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve_app.engine.job import OutputFormat


def encode(
    pixels: npt.NDArray[np.uint8], output_format: OutputFormat, compression: int = 100
) -> bytes:
    """Encode one image."""
    image = Image.fromarray(pixels)
    out = io.BytesIO()
    if output_format == "png":
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, output_format.upper(), quality=compression)
    return out.getvalue()
