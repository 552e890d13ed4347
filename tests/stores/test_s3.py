"""`s3:` against moto and Ceph: the contract, and what only object services do."""

from __future__ import annotations

import pytest

from aiocheckpoint._errors import StoreError
from aiocheckpoint.abc import Store
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores._object_client import PART, part_size
from aiocheckpoint.stores.s3 import S3Store
from aiocheckpoint.testing.contract import StoreContract

from .faulty import proxied
from .object_tests import ObjectStoreTests, ProbeTests
from .objects import Service

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class TestS3Store(StoreContract):
    many_keys = 1000  # moto takes its time

    @pytest.fixture(autouse=True)
    def _bucket(self, service: Service) -> None:
        self.service = service
        self.bucket = service.bucket()

    async def make_store(self) -> Store:
        return S3Store.from_url(self.service.url(self.bucket, "some/place"))

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, S3Store)
        return self.service.raw_head(self.bucket, store, key)


class TestS3(ObjectStoreTests):
    scheme = "s3"

    def open(self, url: str) -> S3Store:
        return S3Store.from_url(url)


class TestS3Probe(ProbeTests):
    scheme = "s3"

    def open(self, url: str) -> S3Store:
        return S3Store.from_url(url)


def test_url() -> None:
    """All options may stand in the URL; the name of the store has where it lies, no more."""
    store = S3Store.from_url(
        "s3://bkt/some/pre%20fix/?endpoint_url=http%3A%2F%2Fhost%3A9000&region=eu-west-1"
        "&profile=dev&anonymous=false&access_key_id=AKIA&secret_access_key=hush%2Fhush"
        "&session_token=hush&path_style=true"
    )
    assert store.identity == "s3://bkt/some/pre fix at host:9000"
    assert repr(store) == "S3Store('s3://bkt/some/pre fix at host:9000')"
    assert (store.transactional, store.min_interval) == (False, 5.0)
    assert store.spool_dir is not None
    assert store.spool_dir != S3Store("bkt", "some/pre fix").spool_dir
    assert S3Store("bkt").identity == "s3://bkt/"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("s3://", "names no bucket"),
        ("s3:bkt", "names no bucket"),
        ("s3://bkt/p?secret=hush", "'secret' is not known; there are endpoint_url, region"),
        ("s3://bkt?region=a&region=b", "'region' is given twice"),
        ("s3://hush:hush@bkt", "credentials do not go before the bucket"),
        ("s3://bkt/a//b", "prefix 'a//b': write up to 200"),
        ("s3://bkt/../b", r"prefix '\.\./b': write"),
        (f"s3://bkt/{'p' * 201}", "write up to 200 bytes"),
        ("s3://bkt?endpoint_url=host:9000", "endpoint_url is written https://host:port"),
        ("s3://bkt?endpoint_url=http://hush:hush@host", "without credentials"),
        ("s3://bkt?anonymous=maybe", "'anonymous' is true or false"),
        ("s3://bkt?secret_access_key=hush", "give access_key_id and secret_access_key, both"),
    ],
)
def test_bad_urls(url: str, match: str) -> None:
    """What cannot be right is said at once, and no secret repeated."""
    with pytest.raises(ValueError, match=match) as caught:
        open_store(url)
    assert "hush" not in str(caught.value)


async def test_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the client can tell is an error of the first call."""
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    store = S3Store("bkt", profile="nobody")
    with pytest.raises(StoreError, match=r"connect: s3://bkt/: .*nobody"):
        await store.load("k")
    await store.aclose()


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    """A machine without credentials is told what to give."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    store = S3Store("bkt", endpoint_url=service.endpoint)
    with pytest.raises(StoreError, match="give credentials, or anonymous=true") as caught:
        await store.load("k")
    assert type(caught.value) is StoreError
    await store.aclose()


async def test_anonymous(service: Service) -> None:
    """Without a signature there is none in a request."""
    bucket = service.bucket()
    with proxied(service) as proxy:
        store = S3Store(bucket, endpoint_url=proxy.service.endpoint, anonymous=True)
        await store.load("k")
        await store.aclose()
    assert [r for r in proxy.seen if "authorization" not in r.headers] == proxy.seen != []


def test_part_sizes() -> None:
    """Parts never run out, and are of one size where the size is known."""
    assert part_size(0, None) == part_size(2999, None) == PART
    assert sum(part_size(number, None) for number in range(10_000)) > 900 << 30
    for size in (1, 200 << 20, 5 << 40):
        assert part_size(0, size) * 10_000 >= size
