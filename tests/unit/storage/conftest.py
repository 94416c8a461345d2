"""A clock, a local folder, and a bucket that speaks the real S3 protocol."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from serve_app.config import StoreConfig
from serve_app.storage.store import ImageStore

TTL_S = 60


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ImageStore:
    config = StoreConfig(
        url=f"file://{tmp_path}/images", signing_key_file=tmp_path / "key", image_ttl_s=TTL_S
    )
    return ImageStore.open(config, "https://images.example/base/", clock)


class Bucket:
    """An S3 server of its own with one bucket, reached as operators configure it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = f"pictures-{secrets.token_hex(4)}"  # moto's servers share their buckets
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        self._server.start()
        host, port = self._server.get_host_and_port()
        credentials = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
        }
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
        self._client = boto3.client("s3", region_name="us-east-1")
        self._client.create_bucket(Bucket=self.name)

    def open(self, now: Clock, **changes: object) -> ImageStore:
        config = StoreConfig.model_validate(
            {"url": f"s3://{self.name}/some/prefix", "image_ttl_s": TTL_S, **changes}
        )
        return ImageStore.open(config, "https://ignored.example", now)

    def put(self, key: str) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=b"not ours")

    def listed(self) -> list[str]:
        listed = self._client.list_objects_v2(Bucket=self.name)
        return [found["Key"] for found in listed.get("Contents", [])]

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    made = Bucket(monkeypatch)
    yield made
    made.stop()
