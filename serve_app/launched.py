"""The server's process: `python -m serve_app.launched FILE REPORT_FD [--dashboard]`.

Data flow: `launch` starts this at once, since what it imports takes seconds -> check the config
file, and that nobody listens on its port -> one JSON list of problems to the file descriptor
REPORT_FD, for `launch` to print -> `deployments.foreground` when the list is empty.
"""

import json
import os
import signal
import sys
from pathlib import Path

from serve_app.configfile import load_app_config
from serve_app.errors import ConfigError
from serve_app.launch import INTERRUPTED, local_address, made_up_gpus, refuse_taken


def problems_of(path: Path) -> list[str]:
    """Why the file cannot be served here now; none: it can."""
    from serve_app.checkconfig import check_config_file  # loads Ray

    problems = check_config_file(path)
    if problems:
        return problems
    try:
        refuse_taken(local_address(path))
    except ConfigError as exc:
        return [str(exc)]
    return []


def main() -> int:
    """Returns the exit status."""
    path, report = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell had it ignored
    try:
        problems = problems_of(path)
        with os.fdopen(report, "w") as pipe:
            json.dump(problems, pipe)
        if problems:
            return 1
        os.environ.update(made_up_gpus(path, load_app_config(path)))
        from serve_app.deployments import foreground

        return foreground.run(path, dashboard="--dashboard" in sys.argv[3:])
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
