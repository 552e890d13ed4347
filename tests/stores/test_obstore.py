"""obstore's clients: the contract on S3's protocol and in memory, and what only they do."""

from __future__ import annotations

import json
import traceback
import urllib.error
import urllib.request
from urllib.parse import quote

import obstore
import pytest
from obstore.store import GCSStore, MemoryStore

from aiocheckpoint._errors import StoreError
from aiocheckpoint.abc import Store
from aiocheckpoint.stores import open_store
from aiocheckpoint.stores.obstore import ObstoreStore
from aiocheckpoint.testing.contract import StoreContract, read, refused

from ..support import run_script
from .faulty import Refuse, proxied
from .object_tests import ObjectStoreTests, ProbeTests, chunks
from .objects import Service, local

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class TestObstoreInMemory(StoreContract):
    in_memory = True

    @pytest.fixture(autouse=True)
    def _memory(self) -> None:
        self.memory = MemoryStore()

    async def make_store(self) -> Store:
        return ObstoreStore(self.memory, "some/place", identity="memory")

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, ObstoreStore)
        try:
            found = await obstore.get_async(self.memory, store._head_name(key))
        except FileNotFoundError:
            return None
        return (await found.bytes_async()).to_bytes()[:-16] or None


class TestObstoreStore(StoreContract):
    many_keys = 1000  # moto takes its time

    @pytest.fixture(autouse=True)
    def _bucket(self, service: Service) -> None:
        self.service = service
        self.bucket = service.bucket()

    async def make_store(self) -> Store:
        return ObstoreStore.from_url(self.service.url(self.bucket, "some/place", "s3+obstore"))

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, ObstoreStore)
        return self.service.raw_head(self.bucket, store, key)


class TestObstore(ObjectStoreTests):
    scheme = "s3+obstore"

    def open(self, url: str) -> ObstoreStore:
        return ObstoreStore.from_url(url)


class TestObstoreProbe(ProbeTests):
    scheme = "s3+obstore"

    def open(self, url: str) -> ObstoreStore:
        return ObstoreStore.from_url(url)


class LocalContract(StoreContract):
    """Against our own trivial service that speaks one of the protocols."""

    scheme: str

    @pytest.fixture(autouse=True)
    def _prefix(self, request: pytest.FixtureRequest) -> None:
        self.prefix = request.node.name
        self.endpoint = local(self.scheme)

    async def raw_head(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, ObstoreStore)
        url = f"{self.endpoint}/bkt/{quote(store._head_name(key))}"
        try:
            with urllib.request.urlopen(url) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as exc:
            exc.close()
            return None
        return body[:-16] or None

    async def test_blob_in_parts(self) -> None:
        """A blob in parts is put as one, and read back from any byte on."""
        store = await self.make_store()
        await store.put_blob("k", "b", chunks(13))
        whole = b"".join([chunk async for chunk in chunks(13)])
        assert await read(store.open_blob("k", "b", 5)) == whole[5:]
        failing = store.put_blob("k", "c", chunks(13, then=ZeroDivisionError()))
        await refused(failing, ZeroDivisionError)
        assert await store.list_blobs("k") == ["b"]
        await store.aclose()


class TestGoogle(LocalContract):
    scheme = "gs"

    async def make_store(self) -> Store:
        account: dict[str, object] = {"client_email": "", "private_key": "", "private_key_id": ""}
        account |= {"gcs_base_url": self.endpoint, "disable_oauth": True}
        google = GCSStore(
            "bkt",
            service_account_key=json.dumps(account),
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        return ObstoreStore(google, self.prefix, identity=f"gs://bkt/{self.prefix}")


class TestAzure(LocalContract):
    scheme = "az"

    async def make_store(self) -> Store:
        options = f"anonymous=true&account=acct&endpoint_url={quote(self.endpoint, safe='')}"
        return ObstoreStore.from_url(f"az://bkt/{self.prefix}?{options}")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("gs://", "names no bucket"),
        ("gs://bkt?region=x", "'region' is not known; there are endpoint_url, anonymous, cred"),
        ("az://bkt?account=a&account_key=hush-", "az://a/bkt/: .*Invalid Access Key.*mend"),
        ("az://bkt?endpoint_url=http://x:hush@host", "without credentials"),
        ('gs://bkt?credentials={"private_key":"hush"}', "is the path of a file"),
        ("s3://me:hush\u2100@bkt", "this URL cannot be read"),
        ("s3+obstore://bkt?profile=dev", "'profile' is not known"),
        ("s3+obstore://bkt?anonymous=1", "'anonymous' is true or false"),
    ],
)
def test_bad_urls(url: str, match: str) -> None:
    """What cannot be right is said at once, and no secret repeated."""
    with pytest.raises((ValueError, StoreError), match=match) as caught:
        open_store(url)
    assert "hush" not in str(caught.value)


def test_identity() -> None:
    """The name of a store has where it lies, and no secret."""
    key = "aHVzaA=="
    store = open_store(f"az://box/some/place?account=acct&account_key={quote(key)}")
    assert repr(store) == "ObstoreStore('az://acct/box/some/place')"
    assert open_store("gs://bkt/p?anonymous=true").identity == "gs://bkt/p"
    url = "s3+obstore://bkt/p?endpoint_url=https://host:9000&access_key_id=a&secret_access_key=hush"
    assert open_store(url).identity == "s3://bkt/p at host:9000"
    same = open_store(url.replace("s3+obstore", "s3"))
    assert same.identity == open_store(url).identity  # and so they share the spool


async def test_signed_urls_are_not_repeated() -> None:
    """An error has neither the signature of a URL nor the driver's long form, which has it, too."""
    with proxied(Service(local("az"), "", "")) as proxy:
        proxy.fault = lambda request: Refuse(403, "AuthenticationFailed")
        endpoint = quote(proxy.service.endpoint, safe="")
        store = ObstoreStore.from_url(
            f"az://box?account=acct&endpoint_url={endpoint}&sas_token={quote('sv=1&sig=hush')}"
        )
        with pytest.raises(StoreError) as caught:
            await store.load("k")
        assert "sig=hush" in proxy.seen[0].path
    shown = "".join(traceback.format_exception(caught.value))
    assert "hush" not in shown
    await store.aclose()


def test_forked_process() -> None:
    """obstore's threads do not survive a fork: that is said, instead of waiting for ever."""
    run_script(
        """
import asyncio, os
from obstore.store import MemoryStore
from aiocheckpoint import StoreError
from aiocheckpoint.stores.obstore import ObstoreStore

async def load():
    return await ObstoreStore(MemoryStore(), identity="memory").load("k")

assert asyncio.run(load()) is None
pid = os.fork()
if pid == 0:
    try:
        asyncio.run(asyncio.wait_for(load(), 10))
    except StoreError as exc:
        os._exit(0 if "forked" in str(exc) else 2)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
"""
    )
