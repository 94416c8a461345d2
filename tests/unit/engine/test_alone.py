"""The engine without a server, as docs/engine.md shows it."""

import re
from pathlib import Path

import pytest
from engine_kit import pixels

DOCS = Path(__file__).parents[3] / "docs" / "engine.md"


def test_the_script_in_the_docs_draws_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [script] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(DOCS), "exec"), {"__name__": "alone"})
    files = sorted(tmp_path.glob("circle-*.png"))
    assert [file.name for file in files] == ["circle-1.png", "circle-2.png"]
    assert all(pixels(file.read_bytes()).shape == (256, 256, 3) for file in files)
