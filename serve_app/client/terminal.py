"""Whether a terminal can show pictures, found out without leaving marks on one that cannot.

Data flow: environment and the terminal's own answer -> `Screen` or None. kitty's and iTerm2's
protocols are told by the environment; sixel by asking for the device attributes (DA1), which every
terminal answers and none prints. Inside tmux and screen only the latter: they swallow the others.
"""

import os
import re
import select
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TextIO

ASK = b"\x1b[c"
ANSWER = re.compile(rb"\x1b\[\?([\d;]*)c")
ANSWER_TIMEOUT_S = 1.0
"""Terminals answer within a round trip; one that never does costs this once."""
SIXEL_ATTRIBUTE = b"4"
ROWS = 12
"""Height of a preview; less on a low terminal."""
ROWS_MIN = 4
ROWS_LEFT = 3
"""Lines below the previews: the progress bar, and what comes next."""


class Protocol(Enum):
    KITTY = "kitty"
    ITERM2 = "iTerm2"
    SIXEL = "sixel"


@dataclass(frozen=True)
class Screen:
    """A terminal that shows pictures: `rows` high each, on `columns` in all; cells in pixels."""

    protocol: Protocol
    rows: int
    columns: int
    cell_px: tuple[int, int]


def find_screen(out: TextIO, environ: Mapping[str, str]) -> Screen | None:
    """The screen behind a stream; None where pictures would be noise."""
    if sys.platform == "win32" or not out.isatty() or environ.get("NO_COLOR"):
        return None
    if environ.get("TERM", "dumb") in ("", "dumb"):
        return None
    lines, columns, cell_px = _size(out.fileno())
    rows = min(ROWS, lines - ROWS_LEFT)
    if rows < ROWS_MIN:
        return None
    protocol = told_by_environment(environ)
    if protocol is None and cell_px is not None and _shows_sixel(out.fileno()):
        protocol = Protocol.SIXEL
    return Screen(protocol, rows, columns, cell_px or (8, 16)) if protocol else None


def told_by_environment(environ: Mapping[str, str]) -> Protocol | None:
    """What the variables that terminals set for their children say."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or environ.get("STY") or term.startswith(("tmux", "screen")):
        return None
    if environ.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty"):
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environ.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM2
    return None


def says_sixel(answer: bytes) -> bool:
    """Whether the device attributes name sixel graphics."""
    found = ANSWER.search(answer)
    return found is not None and SIXEL_ATTRIBUTE in found[1].split(b";")


def _size(descriptor: int) -> tuple[int, int, tuple[int, int] | None]:
    """Lines, columns, and the pixels of a cell, where the terminal tells them."""
    import fcntl
    import struct
    import termios

    packed = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    lines, columns, width_px, height_px = struct.unpack("HHHH", packed)
    if not (lines and columns and width_px and height_px):
        return lines, columns, None
    return lines, columns, (width_px // columns, height_px // lines)


def _shows_sixel(descriptor: int) -> bool:
    """Ask. Only in the foreground, and only where the answer comes back to us."""
    import termios
    import tty

    source = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
    if source is None or os.ttyname(source) != os.ttyname(descriptor):
        return False
    if os.tcgetpgrp(source) != os.getpgrp():  # asking from the background would stop us
        return False
    before = termios.tcgetattr(source)
    try:
        tty.setcbreak(source, termios.TCSANOW)
        os.write(descriptor, ASK)
        return says_sixel(_answer(source))
    finally:
        termios.tcsetattr(source, termios.TCSAFLUSH, before)


def _answer(source: int) -> bytes:
    deadline, answer = time.monotonic() + ANSWER_TIMEOUT_S, b""
    while not ANSWER.search(answer):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([source], [], [], left_s)[0]:
            break
        answer += os.read(source, 256)
    return answer
