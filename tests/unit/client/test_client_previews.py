"""Pictures in a terminal: what a terminal would decode is the picture, in its place."""

import base64
import io
import os
import pty
import re
import threading

import numpy as np
import pytest
from PIL import Image

from serve_app.client import terminal
from serve_app.client.previews import Previews
from serve_app.client.terminal import Protocol, Screen, find_screen, says_sixel, told_by_environment

RED, BLUE = (255, 0, 0), (0, 0, 255)


def file_of(width: int = 64, height: int = 64, kind: str = "PNG") -> bytes:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def written(protocol: Protocol, *shown: tuple[int, bytes], columns: int = 80) -> str:
    out = io.StringIO()
    previews = Previews(Screen(protocol, 12, columns, (8, 16)), out)
    for index, data in shown:
        assert previews.show(index, data)
    return out.getvalue()


def decoded(png_base64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png_base64, validate=True)))


def is_red_and_blue(pixels: np.ndarray) -> bool:
    middle = pixels[pixels.shape[0] // 2].astype(int)
    left, right = middle[len(middle) // 4], middle[3 * len(middle) // 4]
    return bool(abs(left - RED).max() < 8 and abs(right - BLUE).max() < 8)


def kitty_pictures(text: str) -> list[tuple[dict[str, str], str]]:
    """Options and payload of each picture, its chunks joined."""
    found: list[tuple[dict[str, str], str]] = []
    for keys, payload in re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text):
        assert len(payload) <= 4096
        options = dict(pair.split("=") for pair in keys.split(","))
        if "a" in options:
            found.append((options, payload))
        else:
            found[-1] = ({**found[-1][0], "m": options["m"]}, found[-1][1] + payload)
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_kitty_gets_a_png_that_replaces_the_one_before(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)
    large = io.BytesIO()
    Image.fromarray(noise).save(large, kind)
    text = written(Protocol.KITTY, (0, large.getvalue()), (0, file_of(kind=kind)))
    first, second = kitty_pictures(text)
    assert first[0]["i"] == second[0]["i"]
    for options, payload in (first, second):
        assert (options["a"], options["f"], options["q"], options["m"]) == ("T", "100", "2", "0")
        assert (options["c"], options["r"], options["C"]) == ("24", "12", "1")
        assert decoded(payload).format == "PNG"
    assert is_red_and_blue(np.asarray(decoded(second[1])))


def test_iterm2_gets_a_small_png() -> None:
    text = written(Protocol.ITERM2, (0, file_of(2048, 1024)))
    [(options, payload)] = re.findall(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07", text)
    assert f"size={len(base64.b64decode(payload))};width=48;height=12" in options
    picture = decoded(payload)
    assert picture.size == (384, 192)
    assert is_red_and_blue(np.asarray(picture))


def draw_sixel(text: str) -> np.ndarray:
    """A terminal's side of sixel, as far as ours goes."""
    found = re.search(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found is not None
    width, height = int(found[1]), int(found[2])
    pixels, colours = np.zeros((height, width, 3), np.uint8), {}
    x = top = colour = 0
    for define, use, run, cell, control in re.findall(
        r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|!(\d+)(?=.)|([?-~])|([$-])", found[3]
    ):
        if define:
            number, _, *rgb = map(int, define.split(";"))
            colours[number] = [round(part * 2.55) for part in rgb]
        elif use:
            colour = int(use)
        elif run:
            repeat = int(run)
            continue
        elif control:
            x, top = 0, top + (6 if control == "-" else 0)
        elif cell:
            for bit in range(6):
                if (ord(cell) - 63) >> bit & 1:
                    pixels[top + bit, x : x + repeat] = colours[colour]
            x += repeat
        repeat = 1
    return pixels


def test_sixel_draws_the_picture() -> None:
    pixels = draw_sixel(written(Protocol.SIXEL, (0, file_of(100, 100))))
    assert pixels.shape == (12 * 16, 24 * 8, 3)
    assert is_red_and_blue(pixels)
    assert (pixels.max(axis=2) > 200).all()  # no pixel was left out


def test_the_cursor_comes_back_and_room_is_made_once() -> None:
    text = written(Protocol.KITTY, (0, file_of()), (1, file_of()))
    plain = re.sub(r"\x1b_G[^\x1b]*\x1b\\", "", text)
    assert plain == (
        "\n" * 12 + "\x1b[12A\x1b[1G\x1b7\x1b8\x1b[12B\r" + "\x1b[12A\x1b[26G\x1b7\x1b8\x1b[12B\r"
    )


@pytest.mark.parametrize(
    ("index", "data"),
    [(0, b"no picture"), (0, file_of()[:60]), (0, b""), (3, file_of()), (0, file_of(1000, 100))],
)
def test_what_cannot_be_shown_prints_nothing(index: int, data: bytes) -> None:
    out = io.StringIO()
    assert not Previews(Screen(Protocol.KITTY, 12, 80, (8, 16)), out).show(index, data)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-kitty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Protocol.KITTY),
        ({"TERM": "xterm-ghostty"}, Protocol.KITTY),
        ({"TERM": "xterm", "TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM2),
        ({"TERM": "xterm", "LC_TERMINAL": "iTerm2"}, Protocol.ITERM2),
        ({"TERM": "xterm", "TERM_PROGRAM": "WezTerm"}, Protocol.ITERM2),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, None),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
    ],
)
def test_variables_tell_the_protocol(environ: dict[str, str], expected: Protocol | None) -> None:
    assert told_by_environment(environ) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\x1b[?62;4;22c", True),
        (b"typed\x1b[?4c", True),
        (b"\x1b[?62;22;46c", False),
        (b"\x1b[?64;14c", False),
        (b"", False),
    ],
)
def test_device_attributes_tell_sixel(answer: bytes, expected: bool) -> None:
    assert says_sixel(answer) is expected


@pytest.fixture
def tty():
    """Both ends of a terminal of 40 x 120 cells of 8 x 16 pixels."""
    import fcntl
    import struct
    import termios

    keyboard, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 960, 640))
    with os.fdopen(screen, "w") as out:
        yield keyboard, out
    os.close(keyboard)


def test_a_terminal_is_measured(tty) -> None:
    _, out = tty
    found = find_screen(out, {"TERM": "xterm-kitty"})
    assert found == Screen(Protocol.KITTY, 12, 120, (8, 16))


@pytest.mark.parametrize(
    "environ", [{"TERM": "dumb"}, {}, {"TERM": "xterm-kitty", "NO_COLOR": "1"}]
)
def test_some_terminals_are_left_alone(tty, environ: dict[str, str]) -> None:
    assert find_screen(tty[1], environ) is None


def test_a_file_is_no_terminal(tmp_path) -> None:
    with (tmp_path / "log").open("w") as out:
        assert find_screen(out, {"TERM": "xterm-kitty"}) is None


@pytest.mark.parametrize(("answer", "expected"), [(b"\x1b[?62;4c", True), (b"\x1b[?62c", False)])
def test_a_terminal_is_asked_and_left_as_it_was(
    tty, monkeypatch: pytest.MonkeyPatch, answer: bytes, expected: bool
) -> None:
    import termios

    keyboard, out = tty
    monkeypatch.setattr(terminal.sys, "stdin", out)
    monkeypatch.setattr(terminal.os, "tcgetpgrp", lambda _: os.getpgrp())  # not our session's
    before = termios.tcgetattr(out.fileno())

    def reply() -> None:
        assert os.read(keyboard, 100) == b"\x1b[c"
        os.write(keyboard, answer)

    thread = threading.Thread(target=reply)
    thread.start()
    found = find_screen(out, {"TERM": "xterm"})
    thread.join()
    assert (found is not None and found.protocol is Protocol.SIXEL) is expected
    assert termios.tcgetattr(out.fileno()) == before


def test_nobody_in_the_background_asks(tty, monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, out = tty
    monkeypatch.setattr(terminal.sys, "stdin", out)
    monkeypatch.setattr(terminal.os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    assert find_screen(out, {"TERM": "xterm"}) is None
    os.set_blocking(keyboard, False)
    with pytest.raises(BlockingIOError):
        os.read(keyboard, 100)
