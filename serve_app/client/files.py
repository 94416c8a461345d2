"""Where images go: names, formats, and writing that neither overwrites nor leaves half a file.

Data flow: `-o` and `n` -> `Outputs` (checked before anything is paid for) -> `save` an image.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from serve_app.client.failures import LocalFailure

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class Outputs:
    """The files of one command. `force`: they may replace what is there."""

    paths: tuple[Path, ...]
    format: str
    force: bool

    @classmethod
    def plan(cls, out: Path, n: int, *, force: bool) -> "Outputs":
        """`out.png` for one image, `out-1.png`, `out-2.png`, ... for several.

        Raises:
            LocalFailure: an image could not be written there; found out before it is paid for.
        """
        kind = FORMATS.get(out.suffix.lower())
        if kind is None:
            raise LocalFailure(f"--out: {out} must end with one of {', '.join(FORMATS)}")
        paths = (out,) if n == 1 else tuple(_numbered(out, i) for i in range(1, n + 1))
        for path in paths:
            if path.is_dir():
                raise LocalFailure(f"{path} is a folder")
            if not force and os.path.lexists(path):
                raise LocalFailure(f"{path} exists already; --force replaces it")
        try:
            with tempfile.NamedTemporaryFile(dir=out.parent, prefix=".flux-serve-"):
                pass
        except OSError as exc:
            raise LocalFailure(f"cannot write to {out.parent}: {exc.strerror or exc}") from None
        return cls(paths, kind, force)

    def save(self, index: int, data: bytes) -> Path:
        """Write one image; returns where it is.

        A file that appeared while the image was drawn is not replaced: the image, which is paid
        for, gets the next free name.
        """
        path = self.paths[index]
        try:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".flux-serve-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
                if self.force:
                    os.replace(name, path)
                    return path
                return _place(name, path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as exc:
            raise LocalFailure(f"{path} could not be written: {exc.strerror or exc}") from None


def _place(name: str, path: Path) -> Path:
    """Give a finished file its name, or the next one that is free."""
    for candidate in _free_names(path):
        try:
            os.link(name, candidate)  # fails where something is, unlike a rename
        except FileExistsError:
            continue
        except OSError:  # a file system without links: claim the name, then fill it
            try:
                candidate.touch(exist_ok=False)
            except FileExistsError:
                continue
            os.replace(name, candidate)
        return candidate
    raise AssertionError("unreachable: names do not end")


def _free_names(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield _numbered(path, number)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
