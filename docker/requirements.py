"""Print the requirements of pyproject.toml: those of the project and of the named extras.

Data flow: `requirements.py PYPROJECT EXTRA,EXTRA` -> one requirement a line, for the image's
layer of dependencies, which then does not depend on the source. Standard library only.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """What `pip install .[extras]` would install, without the project itself."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    lines = requirements(Path(sys.argv[1]), [extra for extra in sys.argv[2].split(",") if extra])
    sys.stdout.write("\n".join(lines) + "\n")
