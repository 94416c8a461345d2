"""How fast pictures become files: `python -m benchmarks.codec [--quick] [--pictures FOLDER]`.

Data flow: pictures of several kinds, 1024x1024 -> Pillow's default PNG and ours, in turn on one
thread, medians -> table and JSON. `png_speedup` (Pillow / ours, time) is the lowest and
`png_bytes_ratio` (ours / Pillow) the highest over the kinds: no kind does worse. JPEG and WebP are
timed for comparison. Every PNG is decoded again and compared.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks import _report
from serve_app.engine import codec

EDGE_PX = 1024
ROUNDS = 15
ROUNDS_QUICK = 5

Pixels = npt.NDArray[np.uint8]


def shapes() -> Pixels:
    """Flat shapes with smooth edges, each colour exactly itself."""
    image = np.full((EDGE_PX, EDGE_PX, 3), (40, 70, 200), np.uint8)
    cv2.circle(image, (400, 420), 180, (220, 40, 40), -1, cv2.LINE_AA)
    cv2.rectangle(image, (620, 600), (860, 840), (250, 220, 60), -1)
    triangle = np.array([[200, 900], [320, 680], [440, 900]], np.int32)
    cv2.fillPoly(image, [triangle], (40, 160, 80), cv2.LINE_AA)
    return image


def drawn_shapes() -> Pixels:
    """The same as a VAE draws it: soft edges, colours that drift, a faint texture."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(shapes().astype(np.float32), (0, 0), 1.5)
    drift = rng.normal(0, 2, (16, 16, 3)).astype(np.float32)
    image += cv2.resize(drift, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_CUBIC)
    texture = rng.normal(0, 1, (EDGE_PX, EDGE_PX, 3)).astype(np.float32)
    image += 4 * cv2.GaussianBlur(texture, (0, 0), 2)
    return _to_bytes(image)


def photograph(slope: float, grain: float) -> Pixels:
    """Power falls with frequency as in photographs (amplitude 1/f^slope), plus grain."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(EDGE_PX)[:, None], np.fft.rfftfreq(EDGE_PX)[None])
    frequency[0, 0] = np.inf  # no constant part
    light, warm, green = (
        np.fft.irfft2(np.fft.rfft2(rng.normal(size=(EDGE_PX, EDGE_PX))) / frequency**slope)
        for _ in range(3)
    )
    light, warm, green = (field / field.std() for field in (light, warm, green))
    colours = [light + 0.35 * warm, light - 0.15 * warm + 0.1 * green, light - 0.35 * green]
    image = 120 + 45 * np.stack(colours, -1)
    return _to_bytes(image + rng.normal(0, grain, image.shape))


def noise() -> Pixels:
    """Nothing to compress."""
    return np.random.default_rng(2).integers(0, 256, (EDGE_PX, EDGE_PX, 3), np.uint8)


KINDS: dict[str, Callable[[], Pixels]] = {
    "flat shapes": shapes,
    "drawn shapes": drawn_shapes,
    "smooth photograph": partial(photograph, slope=1.6, grain=0.7),
    "detailed photograph": partial(photograph, slope=1.2, grain=1.5),
    "noise": noise,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: well under 60 s")
    parser.add_argument("--pictures", type=Path, help="measure the pictures in this folder instead")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rounds = ROUNDS_QUICK if options.quick else ROUNDS
    kinds = _from_folder(options.pictures) if options.pictures else KINDS
    rows = [_measure(kind, make(), rounds) for kind, make in kinds.items()]
    summary = {
        "png_speedup": min(float(row["png speedup"]) for row in rows),
        "png_bytes_ratio": max(float(row["png bytes ratio"]) for row in rows),
    }
    if options.pictures:
        _report.print_table(rows)
        print(" ".join(f"{key}={value:.3g}" for key, value in summary.items()))
    else:
        notes = [f"{EDGE_PX}x{EDGE_PX}, one thread, medians of {rounds} rounds in turn"]
        packages = ("numpy", "pillow", "zlib-ng", "opencv-python-headless")
        _report.finish("codec", rows, summary, packages=packages, notes=notes)


def _measure(kind: str, pixels: Pixels, rounds: int) -> dict[str, str | float | int]:
    """Time every way in turn, so that what disturbs the machine disturbs all of them."""
    ways: dict[str, Callable[[], bytes]] = {
        "pillow": partial(_pillow_png, pixels),
        "png": partial(codec.encode, pixels, "png"),
        "jpeg": partial(codec.encode, pixels, "jpeg", 90),
        "webp": partial(codec.encode, pixels, "webp", 90),
    }
    files = {way: make() for way, make in ways.items()}
    if not np.array_equal(np.asarray(Image.open(io.BytesIO(files["png"]))), pixels):
        raise SystemExit(f"{kind}: the PNG does not hold the picture")
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, make in ways.items():
            started_at = time.perf_counter()
            make()
            times[way].append(time.perf_counter() - started_at)
    medians = {way: statistics.median(values) * 1000 for way, values in times.items()}
    return {
        "picture": kind,
        "pillow ms": medians["pillow"],
        "png ms": medians["png"],
        "png speedup": medians["pillow"] / medians["png"],
        "pillow kB": len(files["pillow"]) / 1000,
        "png kB": len(files["png"]) / 1000,
        "png bytes ratio": len(files["png"]) / len(files["pillow"]),
        "jpeg 90 ms": medians["jpeg"],
        "webp 90 ms": medians["webp"],
    }


def _pillow_png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _to_bytes(image: npt.NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(image, 0, 255).round().astype(np.uint8)
    return pixels


def _from_folder(folder: Path) -> dict[str, Callable[[], Pixels]]:
    def read(path: Path) -> Pixels:
        return np.asarray(Image.open(path).convert("RGB"))

    return {
        path.name: partial(read, path)
        for path in sorted(folder.iterdir())
        if path.suffix in (".png", ".jpg", ".webp")
    }


if __name__ == "__main__":
    main()
