"""`serve run FILE` that finishes its jobs before it stops: what `flux-serve serve` runs.

Data flow: SIGINT -> applications are deleted, so that their replicas finish what they have while
Serve's proxy still answers -> `serve run`'s own way out. Alone it takes the proxy down first, and
each job under way loses the client that waits for it. A second SIGINT stops at once.
"""

import signal
import sys
import time
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.scripts import cli

POLL_S = 0.2


def drain() -> None:
    """Take no more requests, and return when those under way are done.

    Each replica bounds it: `graceful_shutdown_timeout_s`, which `graph` sets.
    """
    if not ray.is_initialized() or _get_global_client(raise_if_no_controller_running=False) is None:
        return  # stopped while starting
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    while serve.status().applications:
        time.sleep(POLL_S)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one
    print("Finishing the jobs under way; Ctrl-C again stops at once.", flush=True)  # noqa: T201
    try:
        drain()
    except (RayError, RayServeException) as exc:
        print(f"Serve did not drain: {exc}", file=sys.stderr, flush=True)  # noqa: T201
    raise KeyboardInterrupt


def main() -> None:
    """As `serve run` with the same arguments."""
    signal.signal(signal.SIGINT, _stop)
    cli(["run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
