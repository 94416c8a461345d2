"""Draws docs/images/flux-mini-gallery.png: prompts and what flux-mini makes of them.

Data flow: PROMPTS -> the engine that serves, without Ray or HTTP -> tiles -> one PNG.
Every tile has the same seed, and the last row shows what lies outside of the model's world: no
picture is picked. Must not import ray.
"""

import argparse
import asyncio
import textwrap
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from serve_app.engine.engine import Engine
from serve_app.engine.job import GenerationJob

PROMPTS: tuple[str, ...] = (
    "a red circle on a blue background",
    "a large golden star on a purple background",
    "a tiny white heart on a crimson background",
    "an emerald triangle on a pink background",
    "an orange diamond on a black background",
    "a brown cross on a cyan background",
    "two green triangles on a white background",
    "three scarlet hearts on a yellow background",
    "four black squares on an orange background",
    "a pair of small blue rings on a gray background",
    "2 golden balls on a turquoise background",
    "on a violet background, three white stars",
    "a red circle left of a blue square on a white background",
    "a yellow star to the right of a green heart on a black background",
    "a purple ring above an orange triangle on a gray background",
    "a white cross below a cyan diamond on a brown background",
    "a pink ball above a red box on a white background",
    "a blue donut left of a yellow star on a green background",
    "star",
    "a photo of a big pink ball on green",
    "a blue square and a yellow star",
    "seven red circles on a white background",
    "A cute baby sea otter floating on its back",
    "the word HELLO in blue letters",
)
SEED = 7
STEPS = 4
DRAWN_PX = 256
SHOWN_PX = 168
GAP_PX = 8
CAPTION_PX = 52
COLUMNS = 6
FONT_PX = 12
LINE_CHARS = 27
"""What fits into SHOWN_PX at FONT_PX."""
COLOURS = 128
"""Of the palette: shapes are plain, and this keeps the file small enough for a repository."""


async def draw(prompts: tuple[str, ...]) -> list[Image.Image]:
    """One picture a prompt, all with the same seed, one after another."""
    pictures = []
    async with Engine.load("embedded:flux-mini") as engine:
        for prompt in prompts:
            job = GenerationJob(prompt, prompt, DRAWN_PX, DRAWN_PX, STEPS, 0.0, (SEED,))
            [image] = (await engine.generate(job)).images
            pictures.append(Image.open(BytesIO(image.image)).convert("RGB"))
    return pictures


def sheet(prompts: tuple[str, ...], pictures: list[Image.Image]) -> Image.Image:
    """Pictures in reading order, each above its prompt."""
    rows = -(-len(pictures) // COLUMNS)
    width = COLUMNS * (SHOWN_PX + GAP_PX) + GAP_PX
    height = rows * (SHOWN_PX + CAPTION_PX + GAP_PX) + GAP_PX
    grid = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(FONT_PX)
    for k, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x = GAP_PX + k % COLUMNS * (SHOWN_PX + GAP_PX)
        y = GAP_PX + k // COLUMNS * (SHOWN_PX + CAPTION_PX + GAP_PX)
        grid.paste(picture.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS), (x, y))
        pen.rectangle((x, y, x + SHOWN_PX - 1, y + SHOWN_PX - 1), outline="#bbbbbb")
        text = "\n".join(textwrap.wrap(prompt, LINE_CHARS))
        pen.text((x, y + SHOWN_PX + 4), text, fill="#333333", font=font)
    return grid.quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    """Draw the gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/flux-mini-gallery.png"))
    out: Path = parser.parse_args().out
    sheet(PROMPTS, asyncio.run(draw(PROMPTS))).save(out, optimize=True)
    print(f"{out}: {len(PROMPTS)} pictures, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
