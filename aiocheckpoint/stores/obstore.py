"""`gs://`, `az://` and `s3+obstore://`: object services by obstore, a client in Rust."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from .._errors import StoreError
from ._object_client import (
    CONNECT_TIMEOUT,
    PART,
    PART_TIMEOUT,
    PARTS_AT_ONCE,
    Answer,
    Found,
    Listed,
    ObjectClient,
    Piece,
    bare,
    part_size,
    patience,
)
from ._object_urls import check_endpoint, check_prefix, flag, identity_of, parse_url, s3_endpoint
from ._objects import ObjectStore

if TYPE_CHECKING:
    from obstore import GetOptions, PutMode
    from obstore.store import ObjectStore as Driver

# scheme -> option -> what obstore calls it
_OPTIONS: dict[str, dict[str, str]] = {
    "s3+obstore": {
        "endpoint_url": "endpoint",
        "region": "region",
        "anonymous": "skip_signature",
        "access_key_id": "access_key_id",
        "secret_access_key": "secret_access_key",
        "session_token": "session_token",
        "path_style": "virtual_hosted_style_request",
    },
    "gs": {
        "endpoint_url": "base_url",
        "anonymous": "skip_signature",
        "credentials": "application_credentials",
    },
    "az": {
        "endpoint_url": "endpoint",
        "anonymous": "skip_signature",
        "account": "account_name",
        "account_key": "account_key",
        "sas_token": "sas_token",
    },
}
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_QUERY = re.compile(r"\?[^\s\"]+")  # may be a signature
_LONGEST = 500
_NO_ANSWER = ("HTTP error", "error sending request", "timed out", "error decoding response")
_KINDS: tuple[tuple[type, int, str], ...] = (
    (FileNotFoundError, 404, "NoSuchKey"),
    (PreconditionError, 412, "PreconditionFailed"),
    (AlreadyExistsError, 412, "PreconditionFailed"),
    (PermissionDeniedError, 403, "AccessDenied"),
    (UnauthenticatedError, 401, ""),
)
_first_process: int | None = None


class ObstoreStore(ObjectStore):
    """Keeps records in a bucket or container, which must exist, under a prefix.

    `store` is one of obstore's: S3Store, GCSStore, AzureStore or MemoryStore. It should not retry
    (`retry_config={"max_retries": 0}`), as the runtime does. `identity` names the place, equal in
    every process, without secrets.

    Raises:
        ValueError: the prefix cannot be right.
    """

    def __init__(self, store: Driver, prefix: str = "", *, identity: str) -> None:
        super().__init__(identity, check_prefix(prefix), self._client)
        self._store = store

    @classmethod
    def from_url(cls, url: str) -> ObstoreStore:
        scheme, bucket, prefix, options = parse_url(url, {s: tuple(o) for s, o in _OPTIONS.items()})
        if options.get("credentials", "").lstrip().startswith("{"):  # the driver would quote it
            raise ValueError("credentials is the path of a file, not what is in it")
        endpoint = check_endpoint(options.get("endpoint_url"))
        prefix = check_prefix(prefix)
        account = options.get("account") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        named = scheme
        if scheme == "s3+obstore":
            endpoint, named = s3_endpoint(endpoint), "s3"  # the same objects, so the same spool
        place = f"{account}/{bucket}" if scheme == "az" and account else bucket
        identity = identity_of(named, place, prefix, endpoint)
        try:
            store = _driver(scheme, bucket, options, endpoint)
        except BaseError as exc:
            text, cause = _told(exc)
            raise StoreError(f"{identity}: {text}; mend the options", op="open") from cause
        return cls(store, prefix, identity=identity)

    async def _client(self) -> AsyncGenerator[ObjectClient, None]:
        global _first_process
        _first_process = _first_process or os.getpid()
        if os.getpid() != _first_process:  # its threads are not here: it would never answer
            raise StoreError(
                f"{self.identity}: obstore was used before this process was forked; start processes"
                " by spawn, or use s3:",
                op="connect",
            )
        yield ObstoreClient(self._store)


def _driver(scheme: str, bucket: str, options: Mapping[str, str], endpoint: str | None) -> Driver:
    config: dict[str, Any] = {_OPTIONS[scheme][name]: value for name, value in options.items()}
    for name in ("anonymous", "path_style"):
        if (value := flag(options, name)) is not None:
            config[_OPTIONS[scheme][name]] = value if name == "anonymous" else not value
    cls: Any = {"s3+obstore": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    store: Driver = cls(
        bucket,
        config=config,
        client_options={
            "timeout": f"{PART_TIMEOUT:.0f}s",
            "connect_timeout": f"{CONNECT_TIMEOUT:.0f}s",
            "allow_http": (endpoint or "").startswith("http:"),
        },
        retry_config={"max_retries": 0},
    )
    return store


class ObstoreClient:
    """One bucket or container, by obstore."""

    def __init__(self, store: Driver) -> None:
        self.quoted = True
        self._store = store
        self._generations = isinstance(store, GCSStore)  # what GCS compares; the others ETags

    async def get(self, name: str) -> Found:
        result = await obstore.get_async(self._store, name)
        data = await result.bytes_async()
        return Found(data.to_bytes(), self._version(result.meta))

    async def get_piece(self, name: str, start: int, stop: int, tag: str | None) -> Piece:
        options: GetOptions = {"range": (start, stop)}
        if tag is not None:
            options["if_match"] = f'"{tag}"'
        result = await obstore.get_async(self._store, name, options=options)
        data = await result.bytes_async()
        return Piece(data.to_bytes(), result.meta["size"], bare(result.meta["e_tag"] or ""))

    async def put(
        self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        mode: PutMode = "create" if if_absent else "overwrite"
        if if_match is not None:
            etag = f'"{if_match}"' if self.quoted else if_match
            mode = {"version": if_match} if self._generations else {"e_tag": etag}
        putting = obstore.put_async(self._store, name, data, mode=mode, use_multipart=False)
        async with asyncio.timeout(patience(len(data))):
            return self._version(await putting)

    async def list(self, prefix: str) -> AsyncIterator[list[Listed]]:
        folder = prefix.rpartition("/")[0]  # obstore lists whole folders
        async for page in obstore.list(self._store, folder, chunk_size=1000):
            found = [Listed(meta["path"], meta["size"]) for meta in page]
            yield [listed for listed in found if listed.name.startswith(prefix)]

    async def delete(self, name: str) -> None:
        await obstore.delete_async(self._store, name)

    def upload(self, name: str, size: int | None) -> ObstoreUpload:
        return ObstoreUpload(self._store, name, size)

    def explain(self, exc: Exception) -> Answer | None:
        if not isinstance(exc, BaseError | FileNotFoundError | NotImplementedError):
            return Answer(0, "", f"{type(exc).__name__}", exc) if isinstance(exc, OSError) else None
        full = str(exc)
        text, cause = _told(exc)
        if status := _STATUS.search(full):
            code = "" if (found := _CODE.search(full)) is None else found[1]
            if not code and "token request" in full and int(status[1]) < 500:
                code = "NoCredentials"
            return Answer(int(status[1]), code, text, cause)
        if "StartTooLarge" in full:
            return Answer(416, "InvalidRange", text, cause)
        if any(words in full for words in _NO_ANSWER):
            return Answer(0, "", text, cause)
        for kind, known, meaning in _KINDS:
            if isinstance(exc, kind):
                return Answer(known, meaning, text, cause)
        return Answer(400, "", text, cause)

    def _version(self, meta: Mapping[str, Any]) -> str:
        return str(meta["version"]) if self._generations else bare(meta["e_tag"] or "")


class ObstoreUpload:
    """One object on its way; obstore gathers the parts and sends them side by side.

    An upload that is cancelled would be left behind: instead what feeds it fails, and then obstore
    removes it.
    """

    def __init__(self, store: Driver, name: str, size: int | None) -> None:
        self._store = store
        self._name = name
        # all parts have one size here: where none is known it lasts for 160 GB
        self._part = 2 * PART if size is None else part_size(0, size)
        self._queue: asyncio.Queue[bytes | memoryview | _Aborted | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(2)
        self._task: asyncio.Task[object] | None = None

    async def write(self, chunk: bytes | memoryview) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._put())
            self._task.add_done_callback(lambda _: self._room.release())
        await self._room.acquire()
        if self._task.done():
            self._task.result()
        self._queue.put_nowait(chunk)

    async def finish(self) -> None:
        self._queue.put_nowait(None)
        assert self._task is not None
        await asyncio.shield(self._task)

    async def abort(self) -> None:
        self._queue.put_nowait(_Aborted())
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _put(self) -> object:
        return await obstore.put_async(
            self._store,
            self._name,
            self._feed(),
            use_multipart=True,
            chunk_size=self._part,
            max_concurrency=PARTS_AT_ONCE,
        )

    async def _feed(self) -> AsyncIterator[bytes | memoryview]:
        while (chunk := await self._queue.get()) is not None:
            self._room.release()
            if isinstance(chunk, _Aborted):
                raise chunk
            yield chunk


class _Aborted(Exception):
    """The source has failed, or whoever wanted the upload has gone."""


def _told(exc: Exception) -> tuple[str, Exception]:
    """What an error says in brief, and an error that says no more: its long form repeats requests,
    which may be signed in their URLs."""
    text = _QUERY.sub("?...", str(exc).partition("\n\nDebug source")[0])[:_LONGEST]
    return text, type(exc)(text).with_traceback(exc.__traceback__)
