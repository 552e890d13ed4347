"""`s3://BUCKET/PREFIX`: Amazon S3 and what speaks like it, by aiobotocore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import UNSIGNED, exceptions
from botocore.parsers import ResponseParserError

from .._errors import StoreError
from ._object_client import (
    CONNECT_TIMEOUT,
    PART_TIMEOUT,
    Answer,
    Found,
    Listed,
    ObjectClient,
    Piece,
    bare,
    patience,
)
from ._object_urls import check_endpoint, check_prefix, flag, identity_of, parse_url, s3_endpoint
from ._objects import ObjectStore
from ._s3_body import Body
from ._s3_upload import S3Upload

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client as Driver

_OPTIONS = {
    "s3": (
        "endpoint_url",
        "region",
        "profile",
        "anonymous",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "path_style",
    )
}
_CONNECTIONS = 64
_DIRECT = 1 << 20  # bytes that aiohttp takes in one go
_CREDENTIALS = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
_NO_ANSWER = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    exceptions.MetadataRetrievalError,
    exceptions.CredentialRetrievalError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,
)


class S3Store(ObjectStore):
    """Keeps records in a bucket, which must exist, under a prefix.

    What is not given comes from the usual environment: variables, the shared configuration, the
    machine's role. `path_style=None` leaves the choice to botocore.

    Raises:
        ValueError: an argument cannot be right.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        anonymous: bool = False,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        path_style: bool | None = None,
    ) -> None:
        if not bucket or "/" in bucket:
            raise ValueError("a bucket has a name without slashes")
        if (access_key_id is None) != (secret_access_key is None):
            raise ValueError("give access_key_id and secret_access_key, both or none")
        prefix = check_prefix(prefix)
        endpoint = s3_endpoint(check_endpoint(endpoint_url))
        super().__init__(identity_of("s3", bucket, prefix, endpoint), prefix, self._driver)
        self._bucket = bucket
        self._profile = profile
        self._config = client_config(anonymous=anonymous, path_style=path_style)
        self._options: dict[str, Any] = {
            "endpoint_url": endpoint_url,
            "region_name": region,
            "aws_access_key_id": access_key_id,
            "aws_secret_access_key": secret_access_key,
            "aws_session_token": session_token,
        }

    @classmethod
    def from_url(cls, url: str) -> S3Store:
        _, bucket, prefix, options = parse_url(url, _OPTIONS)
        texts = {name: value for name, value in options.items() if name in _TEXTS}
        return cls(
            bucket,
            prefix,
            anonymous=bool(flag(options, "anonymous")),
            path_style=flag(options, "path_style"),
            **texts,
        )

    async def _driver(self) -> AsyncGenerator[ObjectClient, None]:
        async with AsyncExitStack() as stack:
            try:
                session = get_session()
                if self._profile is not None:
                    session.set_config_variable("profile", self._profile)
                creating = session.create_client("s3", config=self._config, **self._options)
                driver = await stack.enter_async_context(creating)
            except (exceptions.BotoCoreError, ValueError) as exc:
                raise StoreError(f"{self.identity}: {exc}", op="connect") from exc
            yield S3Client(driver, self._bucket)


_TEXTS = frozenset(_OPTIONS["s3"]) - {"anonymous", "path_style"}


def client_config(*, anonymous: bool = False, path_style: bool | None = None) -> AioConfig:
    """How we use botocore: no retries, our timeouts, and nothing that only some services know."""
    more: dict[str, Any] = {"signature_version": UNSIGNED} if anonymous else {}
    if path_style is not None:
        more["s3"] = {"addressing_style": "path" if path_style else "virtual"}
    return AioConfig(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=PART_TIMEOUT,  # which runs while a body is sent, too
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        parameter_validation=False,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **more,
    )


class S3Client:
    """One bucket, by aiobotocore."""

    def __init__(self, driver: Driver, bucket: str) -> None:
        self.quoted = True
        self._s3 = driver
        self._bucket = bucket

    async def get(self, name: str) -> Found:
        response = await self._s3.get_object(Bucket=self._bucket, Key=name)
        async with response["Body"] as body:
            return Found(await body.read(), bare(response["ETag"]))

    async def get_piece(self, name: str, start: int, stop: int, tag: str | None) -> Piece:
        more: Any = {} if tag is None else {"IfMatch": self._etag(tag)}
        response = await self._s3.get_object(
            Bucket=self._bucket, Key=name, Range=f"bytes={start}-{stop - 1}", **more
        )
        async with response["Body"] as body:
            data = await body.read()
        total = int(response["ContentRange"].rpartition("/")[2])
        return Piece(data, total, bare(response["ETag"]))

    async def put(
        self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        more: Any = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match is not None:
            more = {"IfMatch": self._etag(if_match)}
        body: Any = data if len(data) <= _DIRECT else Body([data])
        async with asyncio.timeout(patience(len(data))):
            response = await self._s3.put_object(Bucket=self._bucket, Key=name, Body=body, **more)
        return bare(response["ETag"])

    async def list(self, prefix: str) -> AsyncIterator[list[Listed]]:
        pages = self._s3.get_paginator("list_objects_v2")
        async for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
            yield [Listed(found["Key"], found["Size"]) for found in page.get("Contents", ())]

    async def delete(self, name: str) -> None:
        await self._s3.delete_object(Bucket=self._bucket, Key=name)

    def upload(self, name: str, size: int | None) -> S3Upload:
        return S3Upload(self._s3, self._bucket, name, size)

    def explain(self, exc: Exception) -> Answer | None:
        if isinstance(exc, exceptions.ClientError):
            error = exc.response.get("Error", {})
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(error.get("Code", ""))
            text = f"{status} {code}: {error.get('Message', '')}".rstrip(": .")
            return Answer(status, code, text, exc)
        text = f"{type(exc).__name__}: {exc}".rstrip(": .")
        if isinstance(exc, _CREDENTIALS):
            return Answer(403, "NoCredentials", text, exc)
        if isinstance(exc, _NO_ANSWER):
            return Answer(0, "", text, exc)
        if isinstance(exc, exceptions.BotoCoreError):
            return Answer(400, type(exc).__name__, text, exc)
        return None

    def _etag(self, version: str) -> str:
        return f'"{version}"' if self.quoted else version
