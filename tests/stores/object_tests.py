"""What every object store must do, by whichever client."""

from __future__ import annotations

import asyncio
import gc
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aiocheckpoint._errors import ConflictError, StoreError, StoreUnavailableError
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import _object_client
from aiocheckpoint.stores._objects import NONCE, ObjectStore
from aiocheckpoint.testing.contract import listed, put, read, refused

from .faulty import Fault, HoldAnswer, LoseAnswer, Proxy, Refuse, Request, without
from .objects import Service

PART = 8 << 20


def on_put(fault: Fault, *, part: str = "/heads/") -> Callable[[Request], Fault]:
    return lambda request: fault if request.method == "PUT" and part in request.path else None


async def chunks(
    count: int, size: int = 4 << 20, then: Exception | None = None
) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"%07d." % number * (size // 8)
    if then is not None:
        raise then


class OnService:
    """A bucket of its own, behind a proxy; `service` and `proxy` are fixtures."""

    scheme: str

    @abstractmethod
    def open(self, url: str) -> ObjectStore:
        """A store of the class under test."""

    @pytest.fixture(autouse=True)
    def _place(self, service: Service, proxy: Proxy) -> None:
        self.service = service
        self.proxy = proxy
        self.client = service.client()
        self.bucket = service.bucket()

    def store(self, service: Service | None = None, bucket: str = "") -> ObjectStore:
        service = service or self.proxy.service
        return self.open(service.url(bucket or self.bucket, "p", self.scheme))

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return [item["Key"] for item in found]

    def uploads(self) -> Any:
        return self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])


class ProbeTests(OnService):
    """What services are found to be, by changing requests that must not be signed."""

    @pytest.mark.parametrize("header", ["if-none-match", "if-match"])
    async def test_endpoint_that_ignores_conditions(self, header: str) -> None:
        """It is refused before the first write, which is clear about it; look-ups go on."""
        self.proxy.fault = lambda request: without(request, header)
        store = self.store()
        assert await store.load("k") is None
        for call in (put(store, "k", None, b"x"), store.put_blob("k", "b", b"x")):
            with pytest.raises(StoreError, match=f"(?i)ignores {header},.*conditional writes"):
                await call
        await store.aclose()
        assert self.names() == []

    async def test_etags_without_quotes(self) -> None:
        """A service that wants them bare in conditions is found out, and served."""

        def ceph(request: Request) -> Fault:
            tag = request.headers.get("if-match", "")
            if tag.startswith('"'):
                return Refuse(412, "PreconditionFailed")
            return without(request)._replace(
                headers={**request.headers, **({"if-match": f'"{tag}"'} if tag else {})}
            )

        self.proxy.fault = ceph
        store = self.store()
        version = await put(store, "k", None, b"one")
        version = await put(store, "k", version, b"two")
        assert await store.load("k") == (b"two", version)
        await store.aclose()


class ObjectStoreTests(OnService):
    """Subclass it for a client."""

    async def test_names(self) -> None:
        """A head and a blob lie where the documentation says; a long key is in its own name."""
        store = self.store()
        for key in ("run/7", "x" * 200):
            await put(store, key, None, b"record")
            await store.put_blob(key, "b", b"blob")
        assert self.names()[0] == "p/blobs/run%2f7/b"
        assert self.names()[2] == "p/heads/run%2f7"
        assert self.names()[3].startswith("p/heads/xxxxxx")
        assert await listed(store, "x" * 50) == ["x" * 200]
        await store.aclose()

    @pytest.mark.parametrize("prefix", ["", ".", "a.", "a..b", "Ünïcode/", "x" * 150, "." * 100])
    async def test_prefixes(self, prefix: str) -> None:
        """Keys are found by any prefix of theirs, however their names are spelt."""
        store = self.store()
        keys = sorted([prefix + "1", prefix + ".", prefix + "é" * 20, "other"])
        for key in keys:
            await put(store, key, None, b"x")
        assert await listed(store, prefix) == [key for key in keys if key.startswith(prefix)]
        await store.aclose()

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (412, "PreconditionFailed", ConflictError),
            (404, "NoSuchKey", ConflictError),
            (404, "NoSuchBucket", StoreError),
            (404, "", StoreError),
            (409, "ConditionalRequestConflict", StoreUnavailableError),
            (500, "UnknownError", StoreUnavailableError),
            (503, "SlowDown", StoreUnavailableError),
            (400, "ExpiredToken", StoreUnavailableError),
            (400, "EntityTooLarge", StoreError),
            (403, "AccessDenied", StoreError),
            (501, "NotImplemented", StoreError),
        ],
    )
    async def test_answers_to_a_put(self, status: int, code: str, kind: type[StoreError]) -> None:
        """What may pass is told from a lost race and from what will not, by one request."""
        store = self.store()
        version = await put(store, "k", None, b"one")
        self.proxy.fault = on_put(Refuse(status, code))
        self.proxy.seen.clear()
        with pytest.raises(StoreError, match=r"commit 'k': .*; \w+|another version") as caught:
            await put(store, "k", version, b"two")
        assert type(caught.value) is kind
        assert caught.value.__cause__ is not None
        assert len(self.proxy.seen) == 1
        self.proxy.fault = lambda request: None
        assert await store.load("k") == (b"one", version)
        await store.aclose()

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (404, "NoSuchBucket", StoreError),
            (404, "", StoreError),
            (403, "AccessDenied", StoreError),
            (503, "SlowDown", StoreUnavailableError),
        ],
    )
    async def test_unreadable_is_not_absent(
        self, status: int, code: str, kind: type[StoreError]
    ) -> None:
        """A head or blob that cannot be read is an error, never a key without one."""
        store = self.store()
        await put(store, "k", None, b"one")
        self.proxy.fault = lambda request: Refuse(status, code)
        for call in (store.load("k"), read(store.open_blob("k", "b")), store.list_blobs("k")):
            with pytest.raises(StoreError) as caught:
                await call
            assert type(caught.value) is kind
        with pytest.raises(kind):
            await listed(store)
        await store.aclose()

    async def test_no_bucket(self) -> None:
        """A bucket that does not exist is said to, by look-ups and by commits."""
        store = self.store(bucket="no-such-bucket-here")
        for call in (store.load("k"), listed(store), put(store, "k", None, b"x")):
            with pytest.raises(StoreError, match="create it, or name another one"):
                await call
        await store.aclose()

    async def test_nobody_answers(self) -> None:
        """An endpoint that is down may come up again; the error has no secret."""
        down = self.service._replace(endpoint="http://127.0.0.1:1", secret_key="hush-hush")
        store = self.store(down)
        with pytest.raises(StoreUnavailableError) as caught:
            await store.load("k")
        texts = [str(caught.value), repr(caught.value.__cause__), repr(store), store.identity]
        assert not [text for text in texts if "hush" in text]
        await store.aclose()

    async def test_lost_answer(self) -> None:
        """A put whose answer is lost is an error, and has taken effect or not, whole."""
        store = self.store()
        version = await put(store, "k", None, b"one")
        self.proxy.fault = on_put(LoseAnswer())
        with pytest.raises((StoreUnavailableError, ConflictError)):
            await put(store, "k", version, b"two")
        self.proxy.fault = lambda request: None
        head = await store.load("k")
        assert head is not None
        assert head.record == b"two"
        assert head.version != version
        await store.aclose()

    async def test_put_in_flight(self) -> None:
        """A put whose caller has gone is seen to its end, and closing waits for that."""
        store = self.store()
        version = await put(store, "k", None, b"one")
        answer = threading.Event()
        self.proxy.fault = on_put(HoldAnswer(answer))
        commit = asyncio.ensure_future(store.commit([Put("k", version, b"two")]))
        await asyncio.to_thread(self.proxy.passed_on.wait, 10)
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
        assert commit.cancelled()
        closing = asyncio.ensure_future(store.aclose())
        done, _ = await asyncio.wait([closing], timeout=0.1)
        assert not done
        answer.set()
        await closing

    async def test_tombstone(self) -> None:
        """A deleted key is an object of a nonce; it may go by itself, and nothing holds again."""
        store = self.store()
        version = await put(store, "k", None, b"one")
        await store.delete("k", version)
        (found,) = self.client.list_objects_v2(Bucket=self.bucket)["Contents"]
        assert (found["Key"], found["Size"]) == ("p/heads/k", NONCE)
        assert await listed(store) == []
        self.client.delete_object(Bucket=self.bucket, Key="p/heads/k")
        await refused(put(store, "k", version, b"late"))
        again = await put(store, "k", None, b"one")
        await refused(put(store, "k", version, b"late"))
        assert await store.load("k") == (b"one", again)
        await store.aclose()

    async def test_foreign_head(self) -> None:
        """An object that no store has put is named, not taken for an absent key."""
        self.client.put_object(Bucket=self.bucket, Key="p/heads/k", Body=b"hello")
        self.client.put_object(Bucket=self.bucket, Key="p/heads/%zz", Body=b"hello" * 10)
        store = self.store()
        with pytest.raises(StoreError, match="p/heads/k is no head"):
            await store.load("k")
        assert await listed(store) == []
        await store.aclose()

    async def test_endpoint_without_conditions(self) -> None:
        """One that says that it has none is refused as clearly."""
        self.proxy.fault = lambda request: (
            Refuse(501, "NotImplemented") if "if-none-match" in request.headers else None
        )
        store = self.store()
        with pytest.raises(StoreError, match="lacks what this store needs"):
            await put(store, "k", None, b"x")
        await store.aclose()

    async def test_probes_side_by_side(self) -> None:
        """Openers that come together do not disturb each other, and each probes once."""
        stores = [self.store() for _ in range(6)]
        await asyncio.gather(
            *(put(store, f"{i}{j}", None, b"x") for i, store in enumerate(stores) for j in range(3))
        )
        assert len({r.path for r in self.proxy.seen if ".probe-" in r.path}) == 6
        for store in stores:
            await store.aclose()
        assert not [name for name in self.names() if ".probe" in name]

    @pytest.mark.parametrize("how", ["source", "service", "cancelled"])
    async def test_upload_that_fails(self, how: str) -> None:
        """Nothing is left of a large blob that was not put whole."""
        store = self.store()
        source = chunks(8, then=ZeroDivisionError("no more") if how == "source" else None)
        if how == "source":
            with pytest.raises(ZeroDivisionError):
                await store.put_blob("k", "b", source)
        elif how == "service":
            self.proxy.fault = lambda request: (
                Refuse(500, "InternalError") if "partNumber=2" in request.path else None
            )
            with pytest.raises(StoreUnavailableError, match="put_blob 'k'"):
                await store.put_blob("k", "b", source)
        else:
            entered = asyncio.Event()

            async def endless() -> AsyncIterator[bytes]:
                async for chunk in chunks(5):
                    yield chunk
                entered.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(store.put_blob("k", "b", endless()))
            await entered.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        await store.aclose()
        assert self.uploads() == []
        assert [name for name in self.names() if "/blobs/" in name] == []

    async def test_slow_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part that shares a slow link may take longer than any small request may."""
        monkeypatch.setattr(_object_client, "TIMEOUT", 0.5)
        held = threading.Event()
        hold = HoldAnswer(held)
        self.proxy.fault = lambda request: (
            hold if "partNumber=1" in request.path or "/heads/slow" in request.path else None
        )
        store = self.store()
        putting = asyncio.ensure_future(store.put_blob("k", "b", chunks(5)))
        assert await asyncio.to_thread(self.proxy.passed_on.wait, 20)
        with pytest.raises(StoreUnavailableError):
            await put(store, "slow", None, b"x")
        assert not putting.done()
        held.set()
        await putting
        assert len(await read(store.open_blob("k", "b"))) == 20 << 20
        await store.aclose()

    async def test_deletion_cancelled(self) -> None:
        """Of many deletions that are cancelled together nothing is heard again."""
        store = self.store()
        await store.put_blob("k", "b", b"x")
        held = threading.Event()
        self.proxy.fault = lambda request: HoldAnswer(held)
        deleting = asyncio.ensure_future(store.delete_blobs("k", [f"b{n}" for n in range(100)]))
        assert await asyncio.to_thread(self.proxy.passed_on.wait, 20)
        deleting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deleting
        held.set()
        del deleting
        gc.collect()  # what was never awaited would be told now
        await store.aclose()

    async def test_large_blob(self) -> None:
        """Parts go up side by side and come back in order, from any byte on."""
        store = self.store()
        await store.put_blob("k", "b", chunks(11))
        whole = b"".join([chunk async for chunk in chunks(11)])
        head = self.client.head_object(Bucket=self.bucket, Key="p/blobs/k/b")
        assert "-" in head["ETag"]
        assert await read(store.open_blob("k", "b")) == whole
        for start, size in ((PART - 3, 2 * PART), (3, None), (5 * PART, PART)):
            part = await read(store.open_blob("k", "b", start, size))
            assert part == whole[start:][:size]
        await store.put_blob("k", "b", whole)
        assert await read(store.open_blob("k", "b")) == whole
        await store.aclose()

    async def test_blob_replaced_while_it_is_read(self) -> None:
        """A reader gets one content or an error, never some of one and some of another."""
        store = self.store()
        await store.put_blob("k", "b", b"1" * 9 * PART)
        reading = store.open_blob("k", "b")
        assert set(await anext(reading)) == set(b"1")
        await store.put_blob("k", "b", b"2" * 9 * PART)
        with pytest.raises(StoreUnavailableError, match="replaced while it was read"):
            async for chunk in reading:
                assert set(chunk) == set(b"1")
        await store.put_blob("k", "b", b"1" * 9 * PART)
        reading = store.open_blob("k", "b")
        await anext(reading)
        await store.delete_blobs("k", ["b"])
        with pytest.raises(FileNotFoundError):
            async for chunk in reading:
                assert set(chunk) == set(b"1")
        await store.aclose()

    async def test_reader_that_leaves(self) -> None:
        """A reader may stop at any chunk, and nothing of it stays behind."""
        store = self.store()
        await store.put_blob("k", "b", b"1" * 3 * PART)
        reading = store.open_blob("k", "b")
        await anext(reading)
        await reading.aclose()  # type: ignore[attr-defined]
        assert len(asyncio.all_tasks()) <= 2
        await store.aclose()

    def test_two_loops(self) -> None:
        """A store outlives the loop that it was used on, and is closed on another one."""
        store = self.store()

        async def once(number: int) -> None:
            head = await store.load("k")
            assert (head and head.record) == (b"%d" % (number - 1) if number else None)
            await put(store, "k", head and head.version, b"%d" % number)

        for number in range(3):
            asyncio.run(once(number))
        asyncio.run(store.aclose())
