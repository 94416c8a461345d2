"""Images stored per second: `python -m benchmarks.store [--quick]`.

Data flow: 16 images at a time through `ImageStore.put`, as a gateway does it, into a local folder
and into an S3 server (moto, in a process of its own on this machine) -> images and megabytes a
second, and the gateway's processor time for each. moto is Python: what S3 itself can do is not
measured, only what one gateway can send.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from benchmarks import _report
from serve_app.config import StoreConfig
from serve_app.storage.store import ImageStore
from tests.conftest import free_port

AT_ONCE = 16
SIZES = {"thumbnail, 100 kB": 100_000, "1024x1024, 1.5 MB": 1_500_000}
SECONDS, SECONDS_QUICK = 8.0, 3.0
START_S = 30.0
BUCKET = "pictures"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 20 s")
    seconds = SECONDS_QUICK if parser.parse_args().quick else SECONDS
    rows: list[_report.Row] = []
    with tempfile.TemporaryDirectory() as folder, bucket() as s3:
        local = {"url": f"file://{folder}/images", "signing_key_file": f"{folder}/key"}
        for backend, settings in (("folder", local), ("s3 (moto)", {"url": s3})):
            store = ImageStore.open(StoreConfig.model_validate(settings), "http://127.0.0.1")
            for name, size in SIZES.items():
                rate, cpu_ms = asyncio.run(fill(store, size, seconds))
                rows.append(
                    {
                        "store": backend,
                        "image": name,
                        "images per s": rate,
                        "MB per s": rate * size / 1e6,
                        "gateway CPU ms": cpu_ms,
                    }
                )
    summary = {"folder_mb_per_s": float(rows[1]["MB per s"] or 0)}
    notes = [f"{AT_ONCE} at once from one process for {seconds:g} s; all on one machine"]
    _report.finish("store", rows, summary, packages=("obstore", "moto"), notes=notes)


async def fill(store: ImageStore, size: int, seconds: float) -> tuple[float, float]:
    """Images a second, and milliseconds of this process's CPU for each."""
    data, until, stored = os.urandom(size), time.monotonic() + seconds, 0
    started_s, cpu_s = time.monotonic(), time.process_time()

    async def put() -> None:
        nonlocal stored
        while time.monotonic() < until:
            await store.put(data, "png")
            stored += 1

    await asyncio.gather(*(put() for _ in range(AT_ONCE)))
    elapsed_s = time.monotonic() - started_s
    return stored / elapsed_s, 1000 * (time.process_time() - cpu_s) / stored


@contextmanager
def bucket() -> Iterator[str]:
    """URL of an empty bucket on an S3 server of its own."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    try:
        create(f"{endpoint}/{BUCKET}")
        yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.wait()


def create(url: str) -> None:
    """Make the bucket once the server listens."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            request = urllib.request.Request(url, method="PUT")
            with urllib.request.urlopen(request, timeout=5):
                return
        except (URLError, OSError):
            if time.monotonic() > deadline:
                raise SystemExit("moto's server did not start") from None
            time.sleep(0.1)  # polling with a deadline


if __name__ == "__main__":
    main()
