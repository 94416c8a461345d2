"""Files: names, nothing overwritten, nothing half."""

import os
from pathlib import Path

import pytest

from serve_app.client import files
from serve_app.client.failures import LocalFailure
from serve_app.client.files import Outputs


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "png"), ("a.JPG", "jpeg"), ("a.jpeg", "jpeg"), ("a.webp", "webp")]
)
def test_the_suffix_is_the_format(tmp_path: Path, name: str, kind: str) -> None:
    assert Outputs.plan(tmp_path / name, 1, force=False).format == kind


def test_several_images_are_numbered(tmp_path: Path) -> None:
    outputs = Outputs.plan(tmp_path / "a.b.png", 3, force=False)
    assert [path.name for path in outputs.paths] == ["a.b-1.png", "a.b-2.png", "a.b-3.png"]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a.gif", r"\.png, \.jpg"),
        ("a", r"\.png"),
        ("there.png", "--force"),
        ("folder.png", "is a folder"),
        ("missing/a.png", "cannot write"),
        ("dangling.png", "--force"),
    ],
)
def test_what_cannot_be_written_is_found_out_before(tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "there.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    with pytest.raises(LocalFailure, match=words):
        Outputs.plan(tmp_path / out, 1, force=False)
    assert names(tmp_path) == before


def test_an_existing_file_among_several_is_found(tmp_path: Path) -> None:
    (tmp_path / "a-2.png").touch()
    with pytest.raises(LocalFailure, match=r"a-2\.png exists"):
        Outputs.plan(tmp_path / "a.png", 2, force=False)


def test_a_saved_file_has_the_bytes_and_the_usual_mode(tmp_path: Path) -> None:
    path = Outputs.plan(tmp_path / "a.png", 1, force=False).save(0, b"image")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.read_bytes() == b"image"
    assert path.stat().st_mode == plain.stat().st_mode
    assert names(tmp_path) == ["a.png", "plain"]


def test_force_replaces(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    assert Outputs.plan(tmp_path / "a.png", 1, force=True).save(0, b"new") == tmp_path / "a.png"
    assert (tmp_path / "a.png").read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appeared_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(files.os, "link", refuse)
    outputs = Outputs.plan(tmp_path / "a.png", 1, force=False)
    (tmp_path / "a.png").write_bytes(b"somebody's")
    saved = outputs.save(0, b"mine")
    assert (saved.name, saved.read_bytes()) == ("a-2.png", b"mine")
    assert (tmp_path / "a.png").read_bytes() == b"somebody's"
    assert names(tmp_path) == ["a-2.png", "a.png"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    outputs = Outputs.plan(tmp_path / "a.png", 1, force=False)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(LocalFailure, match="No space left"):
        outputs.save(0, b"image")
    assert names(tmp_path) == []
