"""Pictures in a terminal: one row of previews, each replaced in its place as it gets better.

Data flow: image file -> Pillow (small, known format) -> an escape sequence of the screen's protocol
-> the terminal. The place is made first, by scrolling; from then on the cursor always comes back
below it, so a progress bar can live there.
"""

import base64
import io
import secrets
from typing import TextIO

from PIL import Image

from serve_app.client.terminal import Protocol, Screen

CHUNK_CHARS = 4096
"""Largest payload of one kitty sequence."""
SIDE_MAX_PX = 384
"""More pixels than a preview's cells have are bytes for nothing, over ssh seconds of them."""
SIXEL_COLOURS = 128


class Previews:
    """The row of pictures of one command."""

    def __init__(self, screen: Screen, out: TextIO) -> None:
        self._screen = screen
        self._out = out
        self._made_room = False
        self._first_id = secrets.randbelow(2**24) + 1  # not the id of somebody else's picture

    def show(self, index: int, data: bytes) -> bool:
        """Show or replace picture `index`; False when it cannot be shown, with nothing printed."""
        screen = self._screen
        try:
            with Image.open(io.BytesIO(data)) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return False
        columns = self._columns(picture)
        left = index * (columns + 1)
        if left + columns > screen.columns:
            return False
        escape = self._escape(picture, columns, index)
        room = "" if self._made_room else "\n" * screen.rows
        self._made_room = True
        place = f"\x1b[{screen.rows}A\x1b[{left + 1}G"
        self._out.write(f"{room}{place}\x1b7{escape}\x1b8\x1b[{screen.rows}B\r")
        self._out.flush()
        return True

    def _columns(self, picture: Image.Image) -> int:
        width_px, height_px = self._screen.cell_px
        columns = self._screen.rows * height_px * picture.width / (picture.height * width_px)
        return max(1, round(columns))

    def _escape(self, picture: Image.Image, columns: int, index: int) -> str:
        rows, protocol = self._screen.rows, self._screen.protocol
        if protocol is Protocol.SIXEL:
            width_px, height_px = self._screen.cell_px
            return sixel(picture.resize((columns * width_px, rows * height_px)))
        picture.thumbnail((SIDE_MAX_PX, SIDE_MAX_PX))
        file = io.BytesIO()
        picture.save(file, "PNG")
        if protocol is Protocol.KITTY:
            return kitty(file.getvalue(), columns, rows, self._first_id + index)
        return iterm2(file.getvalue(), columns, rows)


def kitty(png: bytes, columns: int, rows: int, number: int) -> str:
    """The graphics protocol of kitty: show at the cursor, leave it there, answer nothing (`q=2`).

    The same number again replaces the picture.
    """
    text = base64.b64encode(png).decode("ascii")
    chunks = [text[i : i + CHUNK_CHARS] for i in range(0, len(text), CHUNK_CHARS)]
    first = f"a=T,f=100,q=2,C=1,i={number},p=1,c={columns},r={rows},"
    parts = []
    for position, chunk in enumerate(chunks):
        more = int(position < len(chunks) - 1)
        parts.append(f"\x1b_G{first if position == 0 else 'q=2,'}m={more};{chunk}\x1b\\")
    return "".join(parts)


def iterm2(png: bytes, columns: int, rows: int) -> str:
    """iTerm2's inline images."""
    text = base64.b64encode(png).decode("ascii")
    options = f"inline=1;size={len(png)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={options}:{text}\x07"


def sixel(picture: Image.Image) -> str:
    """DEC's sixel graphics: bands of six rows, one pass a colour, runs shortened."""
    small = picture.quantize(SIXEL_COLOURS)
    width, height = small.size
    pixels = small.tobytes()
    palette = small.getpalette() or []
    colours = [
        f"#{i};2;" + ";".join(str(round(value / 2.55)) for value in palette[3 * i : 3 * i + 3])
        for i in range(len(palette) // 3)
    ]
    bands = []
    for top in range(0, height, 6):
        rows = [pixels[y * width : (y + 1) * width] for y in range(top, min(top + 6, height))]
        passes = [_sixel_pass(colour, rows, width) for colour in sorted(set(b"".join(rows)))]
        bands.append("$".join(passes))
    return f'\x1bPq"1;1;{width};{height}{"".join(colours)}{"-".join(bands)}\x1b\\'


def _sixel_pass(colour: int, rows: list[bytes], width: int) -> str:
    cells = [
        sum((row[x] == colour) << bit for bit, row in enumerate(rows)) + 63 for x in range(width)
    ]
    parts, start = [f"#{colour}"], 0
    for x in range(1, width + 1):
        if x == width or cells[x] != cells[start]:
            parts.append(_run(chr(cells[start]), x - start))
            start = x
    return "".join(parts)


def _run(letter: str, length: int) -> str:
    return f"!{length}{letter}" if length > 3 else letter * length
