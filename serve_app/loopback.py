"""Whether an address can be reached from this machine only. Standard library only."""

import ipaddress


def is_loopback(host: str | None) -> bool:
    """True for `localhost` and loopback addresses; names are not resolved, so others are False."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
