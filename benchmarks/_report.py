"""What every benchmark does with its figures: a table, a JSON file, one line of key=value pairs.

Data flow: rows (one per case) and a summary -> stdout and `benchmarks/results/NAME-HARDWARE.json`,
together with what is needed to judge them: hardware, versions, commit, command, date. Must not
import the product: it also serves benchmarks that start it as a process.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "ray", "numpy", "pillow", "zlib-ng")
SLUG_CHARS_MAX = 40  # of the hardware's name in a file's name

Value = str | float | int | bool | None
Row = Mapping[str, Value]


def finish(
    name: str,
    rows: Sequence[Row],
    summary: Mapping[str, float],
    *,
    device: str = "cpu",
    packages: Sequence[str] = PACKAGES,
    notes: Sequence[str] = (),
) -> Path:
    """Print the table, write the JSON file and end with the summary; returns the file.

    Args:
        name: of the benchmark: `python -m benchmarks.NAME`.
        rows: one mapping per case, with the same keys.
        summary: the figures that DESIGN asks for by name.
        device: `cpu` or `cuda`: whose name the file carries.
        packages: distributions whose versions matter.
        notes: what a reader must know, for example what was not run.
    """
    print_table(rows)
    for note in notes:
        print(note)
    machine = hardware(device)
    path = RESULTS / f"{name}-{machine['slug']}.json"
    written = {
        "benchmark": name,
        "command": command(name.partition("-")[0]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": machine,
        "versions": versions(packages),
        "notes": list(notes),
        "summary": dict(summary),
        "rows": [dict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")
    print(" ".join(f"{key}={_show(value)}" for key, value in summary.items()), flush=True)
    return path


def print_table(rows: Sequence[Row]) -> None:
    """Print rows under their keys; numbers to the right."""
    if not rows:
        return
    columns = list(rows[0])
    shown = [[_show(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(columns, *shown, strict=True)]
    numbers = [isinstance(rows[0][column], int | float) for column in columns]
    for texts in (columns, ["-" * width for width in widths], *shown):
        cells = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(texts, widths, numbers, strict=True)
        )
        print("  ".join(cells).rstrip())


def hardware(device: str = "cpu") -> dict[str, Value]:
    """Name the machine: processor, cores, memory, GPU if that is what was measured."""
    name = _cpu_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Value] = {"cpu": name, "cores": cores}
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory_gib"] = round(memory / 2**30, 1)
    if device.startswith("cuda"):
        import torch  # only a benchmark on a GPU has it at hand anyway

        found["gpu"] = name = torch.cuda.get_device_name(torch.device(device))
        found["slug"] = _slug(name)
    else:
        found["slug"] = f"{_slug(name)}-{cores}c"
    return found


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the installed ones among `packages`, and of Python."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with `-dirty` when files differ from it; empty outside of git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=RESULTS.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()


def command(name: str) -> str:
    """The command line that makes the figures again."""
    return " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:SLUG_CHARS_MAX]


def _show(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
