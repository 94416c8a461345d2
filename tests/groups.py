"""Which tests one worker of xdist runs, in which order, and how many workers there are.

Data flow: ids of tests -> `group_of` -> a scheduler of xdist (conftest.py). All that needs a
server is one group: one worker has the Ray cluster that those tests share. Every other module is a
group of its own. xdist asks for the group of an id in a process that has collected nothing, so the
modules are listed.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

SERVERS = (
    "tests/integration/test_before_applications.py",  # while nothing is deployed
    "tests/clients/",
    "tests/test_readme.py",
    "tests/hostile/test_hostile_serve.py",
    "tests/browser/",
    "tests/integration/test_command_line.py",
    "tests/integration/test_loadtest.py",
    "tests/integration/test_exported_metrics.py",  # while little has been counted
    "tests/integration/test_tracing_serve.py",
    "tests/integration/test_events.py",
    "tests/integration/test_serve.py",
    "tests/integration/test_scaling.py",
    "tests/integration/test_rolling.py",
    "tests/integration/test_placement.py",
    "tests/integration/test_nodes.py",
    "tests/faults/test_faults.py",  # takes the cluster for itself
    "tests/integration/test_haproxy.py",  # these have clusters of their own
    "tests/integration/test_stopping.py",
    "tests/test_endings.py",
    "tests/ending_cases.py",
)
"""Places of tests that need a server, in the order in which they run."""
WORKERS_MAX = 8
"""The worker with the servers takes longer than eight that share the others."""
SAMPLE_S = 1.0
"""How long the machine is watched for cores that nobody uses."""


def group_of(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return "servers" if path.startswith(SERVERS) else path


def place_of(nodeid: str) -> int:
    """A sort key: servers first, as they take longest, in their order."""
    return next((i for i, place in enumerate(SERVERS) if nodeid.startswith(place)), len(SERVERS))


def check_groups(items: Iterable[pytest.Item]) -> None:
    """Raise where a test of servers is not in their group, or another one is."""
    for item in items:
        serves = item.get_closest_marker("serve") is not None
        if serves != (group_of(item.nodeid) == "servers"):
            raise pytest.UsageError(f"{item.nodeid}: the marker `serve` and tests/groups.py differ")


def workers() -> int:
    """Processes that run tests: one for each core that is free now, at least one."""
    cores = len(os.sched_getaffinity(0))
    before = _idle_s()
    time.sleep(SAMPLE_S)
    idle = (_idle_s() - before) / SAMPLE_S
    return max(1, min(WORKERS_MAX, cores, round(idle)))


def _idle_s() -> float:
    """Seconds that the cores of this process have been idle."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
            ticks += int(fields[3]) + int(fields[4])  # idle, and waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")
