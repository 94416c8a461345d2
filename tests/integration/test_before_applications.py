"""What Serve's proxy answers while no application is deployed."""

import httpx
import pytest

from tests.cluster import Cluster
from tests.integration.conftest import error_of
from tests.machine import MACHINE

pytestmark = pytest.mark.serve


def test_before_an_application_is_deployed_the_proxy_answers_503_in_our_shape(
    cluster: Cluster,
) -> None:
    assert not cluster.applications, "this test comes first: tests/groups.py"
    reply = httpx.get(f"{cluster.url}/v1/models", timeout=MACHINE.allow())
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "service_unavailable"
    assert reply.headers["retry-after"]
