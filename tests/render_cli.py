"""Makes the reference in docs/cli.md: `python -m tests.render_cli`.

Data flow: the commands -> Typer's own Markdown -> between the two markers of the page. The text
around them is written by hand. `tests/test_docs.py` fails while page and code differ.
"""

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from serve_app.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
BEGIN = "<!-- commands: begin (python -m tests.render_cli) -->"
END = "<!-- commands: end -->"


def main() -> None:
    """Bring the page up to date, in place."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """The page with its reference made anew."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found, f"{PAGE.name} lacks the marker {BEGIN}"
    assert ended, f"{PAGE.name} lacks the marker {END}"
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def reference() -> str:
    """Every command: what it does, its arguments and options, an example."""
    command = get_command(app)
    context = typer.Context(command, info_name="flux-serve")
    text = get_docs_for_click(obj=command, ctx=context, name="flux-serve", title="Reference")
    text = re.sub(r"```console\n\$ (.*)\n```", r"    \1", text)  # a pattern, not to be pasted
    text = re.sub(r"^Example: (.*)$", r"```bash\n\1\n```", text, flags=re.MULTILINE)
    return re.sub(r"^#", "##", text, flags=re.MULTILINE).strip() + "\n"


if __name__ == "__main__":
    main()
