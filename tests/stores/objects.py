"""Object services for tests: moto in a process of its own, and Ceph's gateway."""

from __future__ import annotations

import atexit
import functools
import itertools
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import quote

import boto3
import pytest

from aiocheckpoint.stores._objects import ObjectStore

from ..servers import free_port
from ..support import ROOT

_names = itertools.count()


class Service(NamedTuple):
    """An S3 endpoint that takes these keys."""

    endpoint: str
    access_key: str
    secret_key: str

    def client(self) -> Any:
        """A second path to what the stores keep."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def bucket(self) -> str:
        """A new bucket."""
        name = f"aiocheckpoint-{next(_names)}-{time.time_ns():x}"
        self.client().create_bucket(Bucket=name)
        return name

    def raw_head(self, bucket: str, store: ObjectStore, key: str) -> bytes | None:
        """What the bucket holds of a key, without the nonce."""
        client = self.client()
        try:
            found = client.get_object(Bucket=bucket, Key=store._head_name(key))
        except client.exceptions.NoSuchKey:
            return None
        body: bytes = found["Body"].read()
        return body[:-16] or None

    def url(self, bucket: str, prefix: str = "", scheme: str = "s3", **more: str) -> str:
        options = {
            "endpoint_url": self.endpoint,
            "region": "us-east-1",
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            **more,
        }
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
        return f"{scheme}://{bucket}/{prefix}?{query}"


@functools.cache
def moto() -> Service:
    """moto, started once."""
    source = (
        "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
    )
    return Service(_started("-c", source), "test", "testsecret")


@functools.cache
def local(dialect: str, seconds: float = 0.0) -> str:
    """The endpoint of our own trivial service, whose answers take so long; started once."""
    return _started("-m", "tests.stores.local_service", last=(dialect, str(seconds)))


def _started(*command: str, last: tuple[str, ...] = ()) -> str:
    """A server in a process of its own, which ends with this one; its endpoint."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, *command, str(port), *last],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    atexit.register(process.kill)
    answers(f"http://127.0.0.1:{port}", 60)
    return f"http://127.0.0.1:{port}"


def answers(url: str, within: float) -> None:
    """Wait until somebody answers there."""
    until = time.monotonic() + within
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            if time.monotonic() > until:
                pytest.fail(f"no answer in {within} s from {url}")
            time.sleep(0.05)
        else:
            return
