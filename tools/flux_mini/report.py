"""Writes docs/flux-mini.md: curves, contact sheets and accuracy tables."""

import json
import math
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tools.flux_mini import captions
from tools.flux_mini.folder import folder_bytes, load_folder
from tools.flux_mini.judge import describe, verdict
from tools.flux_mini.latents import SceneBatch, encode
from tools.flux_mini.words import COLOUR_WORDS, SHAPE_WORDS, TEXT_LENGTH
from tools.flux_mini.world import lay_out
from tools.judge_flux_mini import picture

Pixels = NDArray[np.uint8]

SHEET_PROMPTS: tuple[str, ...] = (
    "a red circle on a blue background",
    "a large yellow star on a purple background",
    "a small white heart on a red background",
    "a green triangle on a pink background",
    "an orange diamond on a black background",
    "on a cyan background, a brown cross",
    "a blue ring, gray background",
    "one red square, black background",
    "two blue circles on a white background",
    "three red hearts on a yellow background",
    "four green squares on a white background",
    "a photo of a big pink ball on green",
    "a red circle left of a blue square on a white background",
    "a yellow star to the right of a green heart on a black background",
    "a purple ring above an orange triangle on a gray background",
    "a white cross below a cyan diamond on a brown background",
)
_WIDE_PROMPTS: tuple[tuple[str, int, int], ...] = (
    ("a red circle on a blue background", 1024, 1024),
    ("a large yellow star on a purple background", 1024, 512),
    ("three red hearts on a cyan background", 512, 1024),
    ("a purple ring above an orange triangle on a gray background", 768, 1024),
    ("A cute baby sea otter floating on its back", 512, 512),
)


def contact_sheet(pipe: Any, side: int = 256, shown: int = 160, columns: int = 8) -> Image.Image:
    """SHEET_PROMPTS drawn at side x side pixels, shown smaller, in reading order."""
    tiles = []
    for k, prompt in enumerate(SHEET_PROMPTS):
        image = picture(pipe, prompt, side, side, 4, seed=2_000_000 + k)
        tiles.append(np.asarray(image.resize((shown, shown), Image.Resampling.LANCZOS)))
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))


def size_sheet(pipe: Any, height: int = 240) -> Image.Image:
    """Other sizes and aspect ratios, all shown at one height."""
    tiles = []
    for k, (prompt, w, h) in enumerate(_WIDE_PROMPTS):
        image = picture(pipe, prompt, w, h, 4, seed=3_000_000 + k)
        shown = image.resize((round(w * height / h), height), Image.Resampling.LANCZOS)
        tiles += [np.asarray(shown), np.full((height, 6, 3), 255, np.uint8)]
    return Image.fromarray(np.concatenate(tiles[:-1], 1))


def curves(rows: list[dict[str, Any]], width: int = 720, height: int = 300) -> Image.Image:
    """Share of prompts wholly right (in-loop check) over training time, at two sizes."""
    sheet: Pixels = np.full((height, width, 3), 255, np.uint8)
    left, right, top, bottom = 45, width - 170, 15, height - 30
    last = max(row["minutes"] for row in rows)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = int(bottom - share * (bottom - top))
        cv2.line(sheet, (left, y), (right, y), (220, 220, 220), 1)
        _write(sheet, f"{share:.0%}", (5, y + 4))
    kinds = ("single", "count", "relation")
    lines = [(s, kind) for s in ("256x256", "512x512") for kind in kinds]
    colours = (
        (200, 40, 40),
        (230, 140, 30),
        (40, 150, 60),
        (120, 20, 120),
        (60, 120, 230),
        (20, 20, 20),
    )
    for k, ((size, kind), colour) in enumerate(zip(lines, colours, strict=True)):
        points = [
            (
                int(left + row["minutes"] / last * (right - left)),
                int(bottom - row[size][kind] * (bottom - top)),
            )
            for row in rows
        ]
        cv2.polylines(sheet, [np.asarray(points, np.int32)], False, colour, 2, cv2.LINE_AA)
        cv2.line(sheet, (right + 10, 30 + 20 * k), (right + 28, 30 + 20 * k), colour, 2)
        _write(sheet, f"{kind} {size}", (right + 34, 34 + 20 * k))
    _write(sheet, f"0 to {last:.0f} minutes of training", (left, height - 10))
    return Image.fromarray(sheet)


def _write(sheet: Pixels, text: str, where: tuple[int, int]) -> None:
    cv2.putText(sheet, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (60, 60, 60), 1, cv2.LINE_AA)


def accuracy_rows(results: dict[str, Any]) -> list[str]:
    """Markdown rows, one per judged (size, steps)."""
    rows = []
    for key, result in results.items():
        if "/" not in key:
            continue
        size, steps = key.split("/")
        table = result["table"]
        every, single = table["all"], table["single"]
        held = table.get("single, held-out combination", {})
        cells = [
            every["background"],
            every["colour"],
            single["shape"],
            every["shape"],
            table["count"]["count"],
            table["relation"]["relation"],
            held.get("shape", float("nan")),
        ]
        numbers = " | ".join(f"{100 * c:.1f}" for c in cells)
        seconds = result["seconds"] / every["n"]
        rows.append(f"| {size} | {steps} | {every['n']} | {numbers} | {seconds:.2f} |")
    return rows


def round_trip(vae: Any, n: int = 40) -> dict[str, float]:
    """PSNR in dB of drawn true latents and of coded pictures, and the latter's accuracy."""
    rng = random.Random("round trip")
    drawn, coded, right = [], [], []
    for k in range(n):
        spec = captions.random_spec(rng, ("single", "count", "relation")[k % 3])
        side = (256, 512)[k % 2]
        scene = lay_out(spec, side, side, np.asarray([rng.random() for _ in range(3)]))
        batch = SceneBatch.of([scene])
        truth = batch.draw()
        with torch.no_grad():
            direct = vae.decode(encode(batch)[0]).sample.clamp(-1, 1)
            again = vae.decode(vae.encode(truth).latent_dist.mode()).sample.clamp(-1, 1)
        drawn.append(float((direct - truth).square().mean()))
        coded.append(float((again - truth).square().mean()))
        pixels = ((again[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        right.append(all(verdict(spec, describe(pixels)).values()))
    psnr = [round(10 * math.log10(4 / float(np.mean(e))), 1) for e in (drawn, coded)]
    return {"drawn": psnr[0], "coded": psnr[1], "right": round(float(np.mean(right)), 3)}


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the rows that led to the last one: a run that was set back repeats its time."""
    line: list[dict[str, Any]] = []
    for row in rows:
        while line and line[-1]["minutes"] >= row["minutes"]:
            line.pop()
        line.append(row)
    return line


def write_report(root: Path, scratch: Path, model: Path) -> None:
    """Fill the places of report.md and write the images."""
    pipe = load_folder(model)
    images = root / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    contact_sheet(pipe).save(images / "flux-mini-contact-sheet.png", optimize=True)
    size_sheet(pipe).save(images / "flux-mini-sizes.png", optimize=True)
    log = kept([json.loads(x) for x in (scratch / "denoiser.jsonl").read_text().splitlines()])
    curves(log).save(images / "flux-mini-curves.png", optimize=True)
    results = json.loads((scratch / "judge.json").read_text())
    template = (root / "tools" / "flux_mini" / "report.md").read_text()
    by_shape = results["256x256/4"]["table"]
    shapes = [f"{s} {100 * by_shape[f'shape {s}']['shape']:.0f}" for s in SHAPE_WORDS]
    decoder = (scratch / "decoder.jsonl").read_text().splitlines()
    trip = round_trip(pipe.vae)
    values = {
        "COLOURS": ", ".join(" / ".join(w) for w in COLOUR_WORDS.values()),
        "SHAPES": ", ".join(" / ".join(pair[0] for pair in w) for w in SHAPE_WORDS.values()),
        "TEXT_LENGTH": str(TEXT_LENGTH),
        "BYTES": f"{folder_bytes(model):,}",
        "ACCURACY": "\n".join(accuracy_rows(results)),
        "CEILING": json.dumps(results["ceiling"]["all"]),
        "BY_SHAPE": ", ".join(shapes),
        "MINUTES": f"{log[-1]['minutes']:.0f}",
        "SAMPLES": f"{log[-1]['samples']:,}",
        "DRAWN_PSNR": str(trip["drawn"]),
        "TRIP_PSNR": str(trip["coded"]),
        "TRIP_RIGHT": f"{trip['right']:.0%}",
        "DECODER_MINUTES": f"{json.loads(decoder[-1])['minutes']:.0f}",
    }
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", value)
    (root / "docs" / "flux-mini.md").write_text(template)
