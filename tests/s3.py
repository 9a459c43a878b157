"""An S3 server of the tests' own: a process on loopback, gone when its user is."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import boto3

from tests.postgres import die_with_parent

START_SECONDS = 60.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "of-no-use", "AWS_DEFAULT_REGION": "us-east-1"}
"""The server takes any; the client wants some."""


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    client: Any
    _numbers: Iterator[int]

    def make_bucket(self) -> str:
        """The URL of a new bucket's prefix."""
        name = f"pictures-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/of/tests"

    def keys(self, url: str) -> list[str]:
        """All objects in the bucket of `url`."""
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=url.split("/")[2]).get("Contents", ())]

    def allow_strangers(self, is_allowed: bool) -> None:
        """Whether credentials that the server does not know may do everything (as at its start) or nothing."""
        body = b"inf" if is_allowed else b"0"
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", body, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def running() -> Iterator[S3Server]:
    """A server for the length of the block; clients find credentials in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.05)
        endpoint = f"http://127.0.0.1:{port}"
        yield S3Server(endpoint, boto3.session.Session().client("s3", endpoint_url=endpoint), count())
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
