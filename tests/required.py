"""Programs that a test needs and that pip does not install.

`.ci/run` installs all of them, so under CI a missing one is a failure: a skipped test would hide
that nothing was tested. On a developer's machine the test is skipped.
"""

import os

import pytest


def require(found: bool, message: str) -> None:
    """Fail (with CI set) or skip the running test unless a tool was found."""
    __tracebackhide__ = True
    if found:
        return
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
