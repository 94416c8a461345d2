import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from serve_app.engine import codec, png

Pixels = np.ndarray


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def gradient(height: int, width: int) -> Pixels:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows % 256, columns % 256, (rows * columns) % 256], -1).astype(np.uint8)


def flat(height: int, width: int) -> Pixels:
    image = np.full((height, width, 3), (40, 70, 200), np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 30)
    return image


def texture(edge: int) -> Pixels:
    """Smooth as a picture is, with the grain that a VAE leaves."""
    smooth = cv2.resize(noise(16, 16), (edge, edge), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(2).normal(0, 1.5, smooth.shape)
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


PICTURES = [
    make(*size)
    for make in (noise, gradient, flat)
    for size in ((1, 1), (1, 70), (70, 1), (33, 57), (512, 256), (64, 1024))
]


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read a PNG as strictly as the standard lets one."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    assert at == len(data)
    return found


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: f"{picture.shape}")
def test_png_is_lossless_to_two_decoders(picture: Pixels) -> None:
    data = codec.encode(picture, "png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], picture)


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_png_is_lossless_for_any_pixels(picture: Pixels) -> None:
    data = png.encode(picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: f"{picture.shape}")
def test_png_has_the_chunks_and_the_stream_that_the_standard_asks_for(picture: Pixels) -> None:
    height, width, _ = picture.shape
    [(first, header), (second, data), (last, nothing)] = chunks(codec.encode(picture, "png"))
    assert (first, second, last, nothing) == (b"IHDR", b"IDAT", b"IEND", b"")
    assert header == struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    stream = zlib.decompressobj()
    rows = stream.decompress(data)
    assert stream.eof
    assert not stream.unused_data
    assert len(rows) == height * (1 + 3 * width)
    assert set(rows[:: 1 + 3 * width]) <= {0, 1, 2, 3, 4}


def test_the_paeth_filter_agrees_with_the_standards_definition() -> None:
    picture = noise(40, 23)
    filtered = png._filter_paeth(picture.reshape(40, -1))
    padded = np.zeros((41, 24, 3), np.int64)
    padded[1:, 1:] = picture
    for row, column, channel in np.ndindex(40, 23, 3):
        left, above, corner = (
            padded[row + 1, column, channel],
            padded[row, column + 1, channel],
            padded[row, column, channel],
        )
        estimate = left + above - corner
        predicted = min((left, above, corner), key=lambda value: abs(estimate - value))
        expected = (int(picture[row, column, channel]) - predicted) % 256
        assert filtered[row, 1 + 3 * column + channel] == expected


def test_png_takes_pixels_that_do_not_lie_in_one_piece() -> None:
    picture = noise(64, 64)[::2, ::-1]
    data = png.encode(picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_png_refuses_what_is_not_rgb_bytes(wrong: Pixels) -> None:
    with pytest.raises(ValueError, match="uint8"):
        png.encode(wrong)


@pytest.mark.parametrize(
    "picture", [flat(512, 512), texture(512), np.tile(texture(64), (8, 8, 1)), noise(512, 512)]
)
def test_png_is_no_more_than_a_tenth_larger_than_pillows(picture: Pixels) -> None:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    # Tables and headers weigh more in a file of a few kilobytes than the rule is about.
    assert len(codec.encode(picture, "png")) <= 1.1 * len(out.getvalue()) + 512


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_follows_output_compression(output_format: codec.OutputFormat) -> None:
    picture = gradient(128, 128)
    files = [codec.encode(picture, output_format, quality) for quality in (0, 40, 80, 100)]
    assert [len(data) for data in files] == sorted({len(data) for data in files})
    image = Image.open(io.BytesIO(files[-1]))
    assert image.format == output_format.upper()
    assert image.size == (128, 128)


def test_best_quality_is_close_to_the_picture() -> None:
    picture = np.asarray(Image.fromarray(gradient(64, 64)).resize((16, 16)).resize((256, 256)))
    for output_format in ("jpeg", "webp"):
        decoded = Image.open(io.BytesIO(codec.encode(picture, output_format, 100)))
        error = abs(np.asarray(decoded.convert("RGB")).astype(int) - picture)
        assert error.mean() < 3
