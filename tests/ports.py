"""Free ports of this machine."""

import contextlib
import random
import socket

PORTS = (20_000, 30_000)


def free_port() -> int:
    """A port that nobody listens on now; Serve itself cannot report one it chose.

    None of those that the kernel gives to clients, or Ray to its processes: one of them could
    have it by the time a server asks for it.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("0.0.0.0", port))
                return port
