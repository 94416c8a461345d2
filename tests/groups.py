"""Which tests one worker of xdist runs, in which order, and how many workers there are.

Data flow: ids of tests -> `group_of` -> a scheduler of xdist (conftest.py). Tests that need a
server are two groups: those that share applications, and those that break what applications run on.
Every other module is a group of its own. xdist asks for the group of an id in a process that has
collected nothing, so the modules are listed.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

SERVERS = {
    "applications": (
        "tests/integration/test_before_applications.py",  # while nothing is deployed
        "tests/integration/test_scaling.py",  # waits, while other workers compute
        "tests/integration/test_rolling.py",
        "tests/integration/test_exported_metrics.py",  # while little has been counted
        "tests/integration/test_tracing_serve.py",
        "tests/integration/test_events.py",
        "tests/integration/test_serve.py",
        "tests/integration/test_loadtest.py",
        "tests/integration/test_command_line.py",
        "tests/test_readme.py",
        "tests/hostile/test_hostile_serve.py",
        "tests/clients/test_atoma_sdk.py",
        "tests/clients/test_litellm.py",
        "tests/clients/test_openai_node.py",
        "tests/browser/",
    ),
    "breakage": (
        "tests/integration/test_nodes.py",
        "tests/integration/test_placement.py",
        "tests/faults/test_faults.py",  # takes the cluster for itself
        "tests/integration/test_haproxy.py",  # these have clusters of their own
        "tests/integration/test_stopping.py",
        "tests/test_endings.py",
        "tests/ending_cases.py",
    ),
}
"""Places of tests that need a server, by group, in the order in which they run."""
ORDER = [place for places in SERVERS.values() for place in places]
CLIENTS = ("tests/clients/",)
"""The other tests of clients share a server in their own process."""
WORKERS_MAX = 8
"""The workers with servers take longer than the others with all the rest."""
SAMPLE_S = 1.0
"""How long the machine is watched for cores that nobody uses."""


def group_of(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    groups = {**SERVERS, "clients": CLIENTS}
    return next((name for name, places in groups.items() if path.startswith(places)), path)


def place_of(nodeid: str) -> int:
    """A sort key: servers first, as they take longest, in their order."""
    return next((i for i, place in enumerate(ORDER) if nodeid.startswith(place)), len(ORDER))


def check_groups(items: Iterable[pytest.Item]) -> None:
    """Raise where a test of servers is not in their group, or another one is."""
    for item in items:
        serves = item.get_closest_marker("serve") is not None
        if serves != (group_of(item.nodeid) in SERVERS):
            raise pytest.UsageError(f"{item.nodeid}: the marker `serve` and tests/groups.py differ")


def workers(*, servers: bool) -> int:
    """Processes that run tests: one for each core that is free now, at least one.

    Where there are two, one more may run tests of `servers`, which wait more than they compute.
    """
    cores = len(os.sched_getaffinity(0))
    before = _idle_s()
    time.sleep(SAMPLE_S)
    free = min(WORKERS_MAX, cores, round((_idle_s() - before) / SAMPLE_S))
    return free + servers if free > 1 else 1


def _idle_s() -> float:
    """Seconds that the cores of this process have been idle."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
            ticks += int(fields[3]) + int(fields[4])  # idle, and waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")
