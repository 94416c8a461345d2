"""A server of this process, for what clients see wherever the application runs."""

from collections.abc import Iterator

import pytest

from tests.conftest import Served, short_folder


@pytest.fixture(scope="session")
def local() -> Iterator[Served]:
    from tests.in_process import serving  # loads torch

    with serving(short_folder()) as served:
        yield served
        report = served.flux_serve("audit")
        assert report["balanced"], report
